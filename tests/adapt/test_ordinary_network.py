"""A changed network is an ordinary one: saved, copied, exported, compiled, recorded, folded, trained, undone."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import selkern
from selkern.adapt.folded import FoldedBranches, FoldedSum
from selkern.adapt.unit import SelectiveConv
from selkern.errors import UsageError
from selkern.selection.intervene import choose, frozen, shuffled

from .restated import SameConv
from .test_plan import Net, X, block, network


def stirred(**options: Any) -> nn.Module:
    """A changed network whose every weight has moved."""
    model = selkern.selectify(network(), example=X, **{"where": "*", **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


def same_padded() -> nn.Module:
    first = nn.Sequential(SameConv(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    model = selkern.selectify(nn.Sequential(first, block(8, 8)), example=X, where="*", branches=3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("make", [stirred, same_padded])
def test_copies_and_files(make: Any) -> None:
    model = make()
    expected = model(X)
    assert torch.equal(copy.deepcopy(model)(X), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    other = make()
    for p in other.parameters():
        nn.init.constant_(p, 0.5)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(X), expected)


def two_units() -> nn.Module:
    return stirred(where=["b2", "b3"])


@pytest.mark.parametrize("make", [two_units, same_padded])
def test_graphs(make: Any) -> None:
    model = make()
    larger = torch.randn(3, 3, 21, 18)
    expected = model(X), model(larger)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), expected[0])
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(model, (X,))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(X), expected[0])
    torch.testing.assert_close(traced(larger), expected[1])
    images = torch.export.Dim("images", min=2, max=64)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: images},))
    torch.testing.assert_close(program.module()(X), expected[0])


def test_compiled_in_training_has_the_gradients() -> None:
    model = two_units().train()
    twin = copy.deepcopy(model)
    torch.compile(model, backend="aot_eager")(X).square().sum().backward()
    twin(X).square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


def test_selections_are_recorded_and_replaced() -> None:
    model = stirred()
    with selkern.record(model) as selection:
        expected = model(X)
    assert list(selection) == [f"b{i}.conv" for i in range(6)]
    assert selection.units["b2.conv"].extents == (3, 5)
    for a in selection.values():
        torch.testing.assert_close(a.sum(1), torch.ones(2, a.shape[2]))
    first = selection["b5.conv"].mean(0).numpy()
    with choose(model, {"b5.conv": frozen(first), "b4.conv": shuffled}):
        assert not torch.equal(model(X), expected)
    assert torch.equal(model(X), expected)


def test_labels_are_their_own_where_a_block_has_several_units() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv2(self.conv1(x))

    model = Net(lambda s, x: s.layer1(x), layer1=nn.Sequential(Block()))
    with selkern.record(selkern.selectify(model, example=X, where="*")) as selection:
        labels = [unit.label for unit in selection.units.values()]
    assert labels == ["SK_2_1_conv1", "SK_2_1_conv2"]


KINDS: dict[str, Callable[[], tuple[Any, nn.Module, type[nn.Module]]]] = {
    "depthwise": lambda: (nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.ReLU6(), FoldedBranches),
    "depthwise 5x5, stride 2": lambda: (nn.Conv2d(8, 8, 5, 2, 2, groups=8), nn.ReLU(), FoldedBranches),
    "depthwise, dilated": lambda: (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), nn.SiLU(), FoldedBranches),
    "depthwise 3x5": lambda: (nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=8), nn.Identity(), FoldedBranches),
    "dense": lambda: (nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.ReLU(inplace=True), FoldedSum),
    "grouped, stride 2": lambda: (nn.Conv2d(8, 16, 3, 2, 1, groups=2), nn.Hardswish(inplace=True), FoldedSum),
    "same padding": lambda: (SameConv(8, 16, 3, stride=2), nn.ReLU(), SelectiveConv),
    "reflected": lambda: (nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect"), nn.ReLU(), SelectiveConv),
}


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_convolutions(kind: str, branches: int) -> None:
    conv, act, expected = KINDS[kind]()
    x = torch.randn(3, 8, 13, 13)
    parts = OrderedDict(conv=conv, norm=nn.BatchNorm2d(conv.out_channels), act=act)
    model = selkern.selectify(nn.Sequential(parts), example=x, where="*", branches=branches)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.add_(0.3 * torch.rand_like(tensor))
    folded = selkern.fold(model, example=x)
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert type(folded.net.get_submodule("conv")) is expected
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert norms == {FoldedBranches: 0, FoldedSum: 1, SelectiveConv: branches}[expected]


def test_a_norm_with_an_activation_in_it_is_not_folded() -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    x = torch.randn(3, 8, 9, 9)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), NormAct(8))
    selective = selkern.selectify(model, example=x, where="*").eval()
    for net in (model.eval(), selective):
        torch.testing.assert_close(selkern.fold(net, example=x)(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_norm_without_statistics_is_not_folded() -> None:
    x = torch.randn(3, 8, 9, 9)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU())
    selective = selkern.selectify(model, example=x, where="*").eval()
    for net in (model.eval(), selective):
        torch.testing.assert_close(selkern.fold(net, example=x)(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"branches": 3}, {"form": "widened"}, {"gate_norm": "batch"}], ids=str)
def test_fold_and_check(options: dict[str, Any]) -> None:
    model = stirred(**options)
    torch.testing.assert_close(selkern.fold(model, example=X)(X), model(X), rtol=1e-4, atol=1e-4)
    result = selkern.check(model, torch.randn(5, 3, 16, 16))
    assert len(result.units) == 6
    rules = {finding.rule for finding in result.broken}
    gate = "the gate is linear, BN, ReLU, linear"
    assert (gate in rules) == ("gate_norm" not in options), rules


def test_the_paper_unit_rules_hold_with_the_paper_gate() -> None:
    model = nn.Sequential(block(3, 32), block(32, 32))
    selective = selkern.selectify(model, example=X, where="1", gate_norm="batch")
    with torch.no_grad():
        for p in selective.parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert selkern.check(selective, torch.randn(5, 3, 12, 16)).broken == ()


def test_autocast_and_half() -> None:
    model = stirred()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(X)
    torch.testing.assert_close(out.float(), model(X), rtol=0.1, atol=0.3)
    plain = network().bfloat16()
    selective = selkern.selectify(plain, example=X.bfloat16(), where="*")
    assert {p.dtype for p in selective.parameters()} == {torch.bfloat16}
    assert torch.equal(selective.eval()(X.bfloat16()), plain.eval()(X.bfloat16()))


def test_training_moves_the_new_branches_and_then_the_gate() -> None:
    torch.manual_seed(0)
    model = selkern.selectify(network(), example=X, where="*").train()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(selkern.param_groups(model, 0.1, new_lr_factor=2.0, weight_decay=1e-4), momentum=0.9)
    losses = []
    for _ in range(12):
        loss = (model(X) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    still = [name for name, p in model.named_parameters() if torch.equal(p, start[name])]
    assert not [name for name in still if not name.startswith(("b0.conv.gate", "point"))], still


def test_param_groups_hold_every_parameter_once() -> None:
    model = selkern.insert(selkern.selectify(network(), example=X, where="*"), after="point", example=X)
    groups = selkern.param_groups(model, 0.1, new_lr_factor=0.5, weight_decay=0.01)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("there", 0.1, 0.01), ("there, not decayed", 0.1, 0.0), ("new", 0.05, 0.01), ("new, not decayed", 0.05, 0.0),
    ]  # fmt: skip
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(model.parameters())
    names = {p: name for name, p in model.named_parameters()}
    there = [names[p] for group in groups[:2] for p in group["params"]]
    assert len(there) == sum(1 for _ in network().parameters()) + 6 * 2  # and six copies of a norm's weight and bias
    assert any("further.0.norm" in name for name in there)
    assert not any("gate" in name or "further.0.conv" in name or "gamma" in name for name in there)
    assert [g["name"] for g in selkern.param_groups(network(), 0.1)] == ["there", "there, not decayed"]
    for wrong in ({"lr": -1.0}, {"lr": 0.1, "new_lr_factor": -1.0}, {"lr": float("nan")}, {"lr": "a"}, {"lr": None}):
        with pytest.raises(UsageError, match="must be a number of at least 0"):
            selkern.param_groups(model, **wrong)
    listed: Any = list(model.parameters())
    with pytest.raises(UsageError, match=r"a network is an nn.Module, got list .* give the network itself"):
        selkern.param_groups(listed, lr=0.1)
    with pytest.raises(UsageError, match="no parameter needs a gradient"):
        selkern.param_groups(network().requires_grad_(False), 0.1)


def test_weights_of_the_unchanged_network_are_refused_with_what_to_do() -> None:
    model = network()
    selective = selkern.selectify(model, example=X, where="b5")
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"b5\.conv\.weight belongs to the network as it was before selectify"):
            selective.load_state_dict(model.state_dict(), strict=strict)


@pytest.mark.parametrize("options", [{}, {"branches": 3}, {"form": "widened"}], ids=str)
def test_undone_before_training_bit_for_bit(options: dict[str, Any]) -> None:
    model = network().train()
    selective = selkern.selectify(model, example=X, where="*", **options)
    for _ in range(2):  # statistics move, weights do not
        model(X), selective(X)
    if options.get("form") != "widened":  # whose statistics are equal up to rounding, so that it is not untouched
        back = selkern.deselectify(nn.Sequential(selective))[0]
        assert str(back) == str(model)
        assert list(back.state_dict()) == list(model.state_dict())
        assert all(
            torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True)
        )
        assert torch.equal(back(X), model(X))
        assert any(isinstance(module, SelectiveConv) for module in selective.modules())
    fresh = selkern.selectify(model, example=X, where="*", **options)
    assert selkern.deselectify(fresh, inplace=True) is fresh
    assert str(fresh) == str(model)
    assert torch.equal(fresh.eval()(X), model.eval()(X))


@pytest.mark.parametrize("moved", ["further.0.conv.weight", "further.0.norm.bias", "further.0.norm.running_mean"])
def test_not_undone_once_it_has_moved(moved: str) -> None:
    selective = selkern.selectify(network(), example=X, where="*")
    with torch.no_grad():
        selective.state_dict()[f"b5.conv.{moved}"][0] += 0.1
    shown = str(selective)
    with pytest.raises(ValueError, match=r"1 of 6 selective kernels have been trained.*b5\.conv"):
        selkern.deselectify(selective, inplace=True)
    assert str(selective) == shown
    with pytest.raises(UsageError, match="holds no selective kernels"):
        selkern.deselectify(network())
    with pytest.raises(UsageError, match="inplace must be True or False"):
        selkern.deselectify(selective, inplace="no")  # type: ignore[arg-type]


def test_a_folded_network_is_not_undone() -> None:
    folded = selkern.fold(selkern.selectify(network(), example=X, where="*"), example=X)
    for model in (folded, folded.net):
        with pytest.raises(UsageError, match=r"is folded, which cannot be undone.*keep the network that was folded"):
            selkern.deselectify(model)


@pytest.mark.parametrize(
    "module",
    [None, selkern.SKAttention, lambda channels: nn.Conv2d(channels, channels, 3, padding=1)],
    ids=["ours", "article", "function"],
)
@pytest.mark.parametrize("after", ["b3", "b3.act", "b[345]"])
def test_inserted_modules_add_nothing_at_first_and_learn(module: Any, after: str) -> None:
    model = network()
    deeper = selkern.insert(model, after=after, module=module, example=X)
    for training in (False, True):
        assert torch.equal(deeper.train(training)(X), model.train(training)(X))
    assert sum("gamma" in name for name, _ in deeper.named_parameters()) == (3 if "[" in after else 1)
    for _ in range(2):
        deeper(X).square().sum().backward()
        with torch.no_grad():
            for name, p in deeper.named_parameters():
                if "gamma" in name:
                    assert p.grad is not None
                    assert p.grad.abs().sum() > 0
                    p.add_(0.1)
    assert not torch.equal(deeper(X), model(X))
    with pytest.raises(ValueError, match="have been trained"):
        selkern.deselectify(deeper)
    again = selkern.insert(model, after=after, module=module, example=X, inplace=False)
    assert str(selkern.deselectify(again)) == str(model)


class Residual(nn.Module):
    """A block with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = block(3, 3), block(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.first(x))


@pytest.mark.parametrize("after", [["r", "r.first.conv"], "r, r.first.conv,", ("r.first.c*", "r")], ids=str)
def test_insertions_behind_several_layers(after: Any) -> None:
    model = nn.Sequential(OrderedDict(r=Residual(), end=nn.ReLU()))
    deeper = selkern.insert(model, after=after, example=X)
    assert torch.equal(deeper.eval()(X), model.eval()(X))
    assert [name for name, _ in deeper.named_parameters() if "gamma" in name] == [
        "r.layer.first.conv.inserted.gamma", "r.inserted.gamma",
    ]  # fmt: skip
    assert str(selkern.deselectify(deeper)) == str(model)


def test_undone_in_whatever_order_they_came() -> None:
    model = network()
    named = nn.Sequential(OrderedDict(layer=block(3, 8)))
    for original, after, where in ((model, "b5.conv", "b5"), (model, "b4", "b5"), (named, "layer", "*")):
        first = selkern.selectify(original, example=X, where=where)
        twice = selkern.insert(selkern.insert(first, after=after, example=X), after=after, example=X)
        assert torch.equal(twice.eval()(X), original.eval()(X))
        assert str(selkern.deselectify(twice)) == str(original)
        first = selkern.insert(original, after=after, example=X)
        second = selkern.selectify(first, example=X, where=where)
        assert torch.equal(second.eval()(X), original.eval()(X))
        back = selkern.deselectify(second)
        assert str(back) == str(original)
        assert torch.equal(back.eval()(X), original.eval()(X))


def test_a_unit_in_another_place_is_not_undone() -> None:
    selective = selkern.selectify(network(), example=X, where="b5")
    moved = nn.Sequential(*selective.children())
    shown = str(moved)
    with pytest.raises(UsageError, match=r"was made as b5\.conv"):
        selkern.deselectify(moved, inplace=True)
    assert str(moved) == shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": "layer4"}, r"no module matches 'layer4'"),
        ({"after": "b33"}, "nearest modules: b3"),
        ({"after": "flat"}, r"gives no single map"),
        ({"after": 3}, r"^3 is no pattern \| after \| give the name of a layer"),
        ({"after": ["b3", None]}, r"^None is no pattern \| after"),
        ({"after": []}, r"^no pattern is given \| after"),
        ({"after": ["b3", "b9"]}, r"no module matches 'b9'"),
        ({"after": "b3", "module": 5}, r"^5 is no module \| module \| give a module, or a function"),
        ({"after": "b3", "module": lambda _channels: 7}, r"called with 32 channels it gives 7, which is no module"),
        ({"after": "b3", "module": lambda: nn.Identity()}, r"calling it with 32 channels fails: .*0 positional"),
        ({"after": "b3", "module": nn.MaxPool2d(3, 1, 1, return_indices=True)}, "gives a tuple, not a map"),
        ({"after": "b3", "inplace": "no"}, "inplace must be True or False"),
        ({"after": "b3", "example": X * float("nan")}, "nothing can be compared"),
        ({"after": "b3", "example": None}, "no example"),
        ({"after": "b3", "module": nn.Conv2d(5, 5, 1)}, r"the module does not take \(2, 32, 8, 8\)"),
        ({"after": "b3", "module": nn.Conv2d(32, 5, 1)}, r"turns \(2, 32, 8, 8\) into \(2, 5, 8, 8\)"),
        ({"after": "b3", "example": X[:, :2]}, "does not run on the example"),
    ],
)
def test_insertions_that_cannot_be(options: dict[str, Any], message: str) -> None:
    model = network()
    shown = str(model)
    with pytest.raises(UsageError, match=message):
        selkern.insert(model, **{"example": X, "inplace": True, **options})
    assert str(model) == shown
