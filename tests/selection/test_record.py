"""`selkern.record`: what it gives is what the network chose, and the network does not notice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from selkern import SelectiveKernel, SKAttention, SKFusion, create_model, record
from selkern.layers.gate import Gate
from selkern.models.backbone import Backbone
from selkern.selection.record import label_of


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def mini() -> Backbone:
    return create_model("sknet_mini", num_classes=4)


def test_shapes_labels_and_windows_of_a_model(mini: Backbone) -> None:
    with record(mini) as selection:
        assert len(selection) == 0
        mini(torch.randn(3, 3, 32, 32))
    names = [f"stages.{stage}.{unit}.mixer" for stage in range(3) for unit in range(2)]
    widths = [width for width in mini.arch.mids for _unit in range(2)]
    assert list(selection) == names
    assert [tuple(a.shape) for a in selection.values()] == [(3, 2, width) for width in widths]
    assert [selection.units[n].label for n in names] == [
        "SK_2_1",
        "SK_2_2",
        "SK_3_1",
        "SK_3_2",
        "SK_4_1",
        "SK_4_2",
    ]
    assert {selection.units[n].extents for n in names} == {(3, 5)}
    assert all(selection.units[n].ordered for n in names)


def test_labels_of_the_paper_s_figure() -> None:
    with torch.device("meta"), record(create_model("sknet50")) as selection:
        labels = {unit.label: name for name, unit in selection.units.items()}
    assert len(labels) == 16
    assert labels["SK_2_3"] == "stages.0.2.mixer"
    assert labels["SK_3_4"] == "stages.1.3.mixer"
    assert labels["SK_4_6"] == "stages.2.5.mixer"
    assert labels["SK_5_3"] == "stages.3.2.mixer"


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("layer2.3.conv2", "SK_3_4"),
        ("encoder.layer1.0.conv2", "SK_2_1"),
        ("backbone.stages.0.2.mixer", "SK_2_3"),
        ("player2.3.conv2", "player2.3.conv2"),
        ("SKAttention", "SKAttention"),
    ],
)
def test_label_of_a_path(path: str, label: str) -> None:
    assert label_of(path) == label


def test_the_weights_of_a_channel_add_up_to_1(mini: Backbone) -> None:
    with record(mini) as selection:
        mini(torch.randn(3, 3, 32, 32))
    for name, a in selection.items():
        assert (a > 0).all(), name
        torch.testing.assert_close(a.sum(1), torch.ones(a.shape[0], a.shape[2]))


def test_a_selective_kernel_alone_gives_equation_5() -> None:
    layer = SelectiveKernel(32, 64, kernels=(1, 3, 5), min_width=8).eval()
    x = torch.randn(2, 32, 6, 6)
    with record(layer) as selection:
        layer(x)
    assert list(selection) == ["SelectiveKernel"]
    assert selection.units["SelectiveKernel"].extents == (1, 3, 5)
    gate = layer.gate
    assert gate is not None
    s = torch.stack([branch(x) for branch in layer.branches]).sum(0).mean((2, 3))
    logits = gate.norm(s @ gate.fc1.weight.T).clamp(min=0) @ gate.fc2.weight.T
    e = logits.reshape(2, 3, 64).exp()
    torch.testing.assert_close(selection["SelectiveKernel"], e / e.sum(1, keepdim=True))


def test_sk_attention_alone() -> None:
    layer = SKAttention(8, (1, 3, 7), L=4).eval()
    x = torch.randn(2, 8, 6, 6)
    with record(layer) as selection:
        layer(x)
    assert list(selection) == ["SKAttention"]
    assert selection.units["SKAttention"].extents == (1, 3, 7)
    z = layer.fc(torch.stack([branch(x) for branch in layer.convs]).sum(0).mean((2, 3)))
    expected = torch.stack([fc(z) for fc in layer.fcs]).softmax(0).transpose(0, 1)
    torch.testing.assert_close(selection["SKAttention"], expected)


def test_fusion_alone_has_no_windows_to_order() -> None:
    layer = SKFusion(32, 3).eval()
    with record(layer) as selection:
        layer([torch.randn(2, 32, 4, 4) for _ in range(3)])
    assert selection["SKFusion"].shape == (2, 3, 32)
    assert selection.units["SKFusion"].extents == ()
    assert not selection.units["SKFusion"].ordered


def test_a_gate_alone() -> None:
    gate = Gate(8, 2).eval()
    with record(gate) as selection:
        a = gate(torch.randn(2, 8))
    assert torch.equal(selection["Gate"], a)


def test_units_inside_another_network_keep_their_paths() -> None:
    net = nn.ModuleDict(
        {"neck": SKFusion(8), "body": nn.Sequential(SelectiveKernel(8, groups=2), SKAttention(8, (1, 3)))}
    )
    with record(net) as selection:
        pass
    assert list(selection.units) == ["neck", "body.0", "body.1"]
    assert [unit.extents for unit in selection.units.values()] == [(), (3, 5), (1, 3)]


def test_a_network_without_units_gives_nothing() -> None:
    net = create_model("sknet_mini_sum", num_classes=2).eval()
    with record(net) as selection:
        net(torch.randn(1, 3, 32, 32))
    assert dict(selection) == {}
    assert selection.units == {}


class SelectiveKernelAttn(nn.Module):
    """What timm calls its gate: the output is (N, M, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((3, 4), keepdim=True).softmax(1)


class TimmLike(nn.Module):
    """A unit laid out as timm's are."""

    def __init__(self) -> None:
        super().__init__()
        paths = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=d, dilation=d), nn.ReLU()) for d in (1, 2)]
        self.paths = nn.ModuleList(paths)
        self.attn = SelectiveKernelAttn()

    def forward(self, x: Tensor) -> Tensor:
        u = torch.stack([path(x) for path in self.paths], 1)
        return (u * self.attn(u)).sum(1)


def test_units_laid_out_as_timm_s() -> None:
    net = nn.ModuleDict({"layer2": nn.Sequential(nn.Sequential(TimmLike()))})
    with record(net) as selection:
        net["layer2"](torch.randn(3, 4, 6, 6))
    assert selection["layer2.0.0"].shape == (3, 2, 4)
    unit = selection.units["layer2.0.0"]
    assert (unit.label, unit.extents) == ("SK_3_1", (3, 5))


def test_the_latest_pass_is_kept_and_detached(mini: Backbone) -> None:
    mini.eval()
    x = torch.randn(2, 3, 32, 32)
    with record(mini) as selection:
        mini(torch.randn(5, 3, 32, 32))
        mini(x)
    with record(mini) as again:
        mini(x)
    for name, a in selection.items():
        assert not a.requires_grad
        assert torch.equal(a, again[name])


def test_nothing_is_recorded_after_the_block_and_no_hook_stays(mini: Backbone) -> None:
    with record(mini) as selection:
        assert hooks(mini) == 6
    assert hooks(mini) == 0
    mini(torch.randn(2, 3, 32, 32))
    assert len(selection) == 0


def test_no_hook_stays_after_an_exception(mini: Backbone) -> None:
    with pytest.raises(RuntimeError, match="out of luck"), record(mini):
        raise RuntimeError("out of luck")
    assert hooks(mini) == 0


def test_blocks_can_be_nested(mini: Backbone) -> None:
    with record(mini) as outer:
        with record(mini) as inner:
            mini(torch.randn(2, 3, 32, 32))
        assert hooks(mini) == 6
    assert outer.keys() == inner.keys()
    assert all(torch.equal(outer[name], inner[name]) for name in outer)


def test_outputs_and_gradients_are_bit_identical(mini: Backbone) -> None:
    x = torch.randn(3, 3, 32, 32)
    state = {n: v.clone() for n, v in mini.state_dict().items()}

    def results() -> dict[str, Tensor]:
        mini.load_state_dict(state)
        mini.zero_grad()
        y = mini(x)
        y.square().sum().backward()
        result = {n: p.grad.clone() for n, p in mini.named_parameters() if p.grad is not None}
        return {**result, **{f"after {n}": b.clone() for n, b in mini.named_buffers()}, "output": y.detach()}

    plain = results()
    with record(mini):
        seen = results()
    assert plain.keys() == seen.keys()
    assert all(torch.equal(plain[n], seen[n]) for n in plain)


def test_a_compiled_model_is_recorded_too() -> None:
    """Hooks are passed by in compiled code: within the block the model runs as it was written, and not after it."""
    calls = [0]

    def counting(graph: torch.fx.GraphModule, _inputs: object) -> object:
        def run(*args: object) -> object:
            calls[0] += 1
            return graph.forward(*args)

        return run

    model = create_model("sknet_mini", num_classes=3).eval()
    compiled: nn.Module = torch.compile(model, backend=counting)  # type: ignore[assignment]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = compiled(x)
        before = calls[0]
        assert before > 0
        with record(compiled) as selection, record(model) as plain:
            torch.testing.assert_close(compiled(x), expected)
        assert calls[0] == before
        assert selection.keys() == plain.keys()
        assert len(selection) == 6
        assert all(torch.equal(a, plain[name]) for name, a in selection.items())
        compiled(x)
    assert calls[0] > before
