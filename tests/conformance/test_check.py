"""`check` against units written here in other styles than ours, each with one of the faults that circulate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from shim import timm_or_skip
from torch import Tensor, nn
from torch.nn import functional as F

import selkern
from selkern.cli import main
from selkern.conformance.rules import NETWORK_RULES, UNIT_RULES
from selkern.convert.subject import find_inputs
from selkern.errors import UsageError

ALONE = "an image's output is its own, alone or in a batch"
WINDOWS, DILATED, GROUPED, WHOLE, STEPS, BIASES, FUSE, GATE, WIDTH, EXPAND, SOFTMAX, CHANNEL, ONE, SELECT, AFTER = (
    rule.text for rule in UNIT_RULES
)
STRIDE, POOL, COUNT = (rule.text for rule in NETWORK_RULES)


def broken(model: nn.Module, *inputs: object) -> set[str]:
    return {finding.rule for finding in selkern.check(model, *inputs).broken}


class FunctionalSK(nn.Module):
    """The paper's unit in one function, with 1x1 convolutions for the gate and einsum for Select; or with a fault."""

    def __init__(self, c: int = 64, fault: str = "") -> None:
        super().__init__()
        self.c, self.fault = c, fault
        g, d = (1 if fault == "dense" else 32), (4 if fault == "no floor" else 32)
        reads = c // 2 if fault == "split" else c
        self.w = nn.ParameterList(torch.randn(c, reads // g, 3, 3) * 0.1 for _ in range(2))
        if fault == "true 5x5":
            self.w[1] = torch.randn(c, reads // g, 5, 5) * 0.1
        self.bn = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(2))
        self.reduce = nn.Conv2d(c, d, 1, bias=False)
        self.gate_bn = nn.BatchNorm2d(d)
        scalar = {"scalar": 2, "shared": c}.get(fault, 2 * c)
        self.expand = nn.Conv2d(d, scalar, 1, bias=fault == "bias")
        self.last = nn.BatchNorm2d(c)

    def branches(self, x: Tensor) -> list[Tensor]:
        result = []
        parts = x.chunk(2, 1) if self.fault == "split" else (x, x)
        for i, (w, bn, part) in enumerate(zip(self.w, self.bn, parts, strict=True)):
            d = 1 if w.shape[2] == 5 or self.fault == "equal" else i + 1
            y = F.conv2d(part, w, None, 1, (w.shape[2] // 2) * d, d, x.shape[1] // (w.shape[1] * len(set(parts))))
            y = y if self.fault == "no branch norm" else bn(y)
            result.append(y if self.fault == "no branch relu" else F.relu(y))
        return result

    def gate(self, u: list[Tensor]) -> Tensor:
        """(N, 2, C)"""
        total = u[0] + (u[0] if self.fault == "half a sum" else u[1])
        s = total.amax((2, 3), keepdim=True) if self.fault == "maximum" else F.adaptive_avg_pool2d(total, 1)
        z = self.reduce(s)
        z = z if self.fault == "no gate norm" else self.gate_bn(z)
        logits = self.expand(z if self.fault == "no gate relu" else torch.relu_(z))
        if self.fault == "shared":
            logits = torch.cat([logits, logits], 1)
        if self.fault == "wrapped":
            logits = logits.sigmoid()
        a = logits.reshape(len(s), 2, -1)
        if self.fault == "sigmoid":
            return a.sigmoid()
        return a.softmax({"batch": 0, "channels": 2}.get(self.fault, 1))

    def forward(self, x: Tensor) -> Tensor:
        u = self.branches(x)
        a = self.gate(u)
        if self.fault == "scalar":
            return u[0] * a[:, 0, :, None, None] + u[1] * a[:, 1, :, None, None]
        v = torch.einsum("nmchw,nmc->nchw", torch.stack(u, 1), a)
        if self.fault == "twice":
            v = v + u[0]
        if self.fault == "after":
            v = F.relu(self.last(v))
        return v.squeeze() if self.fault == "squeeze" else v


FAULTS = [
    ("", set()),
    ("equal", {WINDOWS}),
    ("true 5x5", {DILATED}),
    ("dense", {GROUPED}),
    ("split", {WHOLE}),
    ("no branch norm", {STEPS}),
    ("no branch relu", {STEPS}),
    ("bias", {BIASES}),
    ("half a sum", {FUSE}),
    ("maximum", {FUSE}),
    ("no gate norm", {GATE}),
    ("no gate relu", {GATE}),
    ("wrapped", {GATE}),
    ("no floor", {WIDTH}),
    ("shared", {EXPAND}),
    ("scalar", {EXPAND, CHANNEL}),
    ("channels", {SOFTMAX, ONE}),
    ("batch", {SOFTMAX, ONE, ALONE}),
    ("sigmoid", {SOFTMAX, ONE}),
    ("after", {AFTER}),
    ("squeeze", {ALONE}),
]


@pytest.mark.parametrize(("fault", "expected"), FAULTS)
def test_each_fault_breaks_its_rule_and_no_other(fault: str, expected: set[str]) -> None:
    torch.manual_seed(0)
    assert broken(FunctionalSK(fault=fault), torch.randn(5, 64, 8, 12)) == expected


def test_what_is_added_to_the_weighted_sum_is_no_fault_of_the_unit() -> None:
    assert broken(FunctionalSK(fault="twice"), torch.randn(5, 64, 8, 12)) == set()


@pytest.mark.parametrize("kernels", [(3, 5), (3, 5, 7), (1, 3)])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_our_layer_obeys_all(kernels: tuple[int, ...], dims: int) -> None:
    layer = selkern.SelectiveKernel(64, 96, kernels, stride=2, dims=dims).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    result = selkern.check(layer, torch.randn(5, 64, *(6, 8, 10)[:dims]))
    assert result.broken == ()
    assert len(result.findings) == len(UNIT_RULES) + 1
    assert layer.training
    assert layer.branches.training
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("name", ["sknet26", "sknet50", "sknet101"])
def test_our_networks_obey_all(name: str) -> None:
    model = selkern.create_model(name, num_classes=7)
    result = selkern.check(model, torch.randn(5, 3, 64, 96))
    assert result.broken == ()
    assert {STRIDE, POOL, COUNT} <= {finding.rule for finding in result.findings}
    assert result.units[:2] == ("SK_2_1", "SK_2_2")
    assert len(result.units) == sum(model.arch.depths)


def test_the_article_s_module_has_the_faults_that_are_known_of_it() -> None:
    result = selkern.check(selkern.SKAttention(64), torch.randn(5, 64, 8, 12))
    assert {finding.rule: finding.evidence for finding in result.broken} == {
        DILATED: ("1x1 G1, 3x3 G1, 5x5 G1, 7x7 G1",),
        GROUPED: ("G 1 of 64 channels",),
        BIASES: ("with bias: 4 convolutions of the branches, 2 linear maps of the gate",),
        GATE: ("linear 64-32, linear 32-256, softmax",),
    }
    old = selkern.SKAttention(64, softmax_over="batch")
    assert broken(old, torch.randn(5, 64, 8, 12)) - {finding.rule for finding in result.broken} == {SOFTMAX, ONE, ALONE}


def test_timm_s_layer_halves_the_input_and_has_no_floor() -> None:
    timm = timm_or_skip()
    from timm.layers import SelectiveKernel  # type: ignore[attr-defined]

    result = selkern.check(SelectiveKernel(64), torch.randn(5, 64, 8, 12))
    assert {finding.rule: finding.evidence for finding in result.broken} == {
        GROUPED: ("G 1 of 32 channels",),
        WHOLE: ("channels read: 32 of 64, 32 of 64",),
        WIDTH: ("C 64: d 8",),
    }
    assert broken(timm.create_model("skresnext50_32x4d"), torch.randn(5, 3, 64, 96)) == {POOL}
    assert WHOLE in broken(timm.create_model("skresnet18"), torch.randn(5, 3, 64, 96))


class Strided(nn.Module):
    """A unit behind a convolution that halves the map, where the prototxt halves in the unit."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 1, stride)
        self.unit = FunctionalSK()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.unit(self.conv(x))
        return out


def test_a_stride_in_front_of_the_unit() -> None:
    x = torch.randn(5, 3, 16, 24)
    assert broken(Strided(1), x) == set()
    assert broken(Strided(2), x) == {STRIDE}


def test_another_number_of_parameters_than_the_published_network_s() -> None:
    model = selkern.create_model("sknet26", num_classes=0)
    model.register_parameter("more", nn.Parameter(torch.zeros(3)))
    assert broken(model, torch.randn(5, 3, 64, 96)) == {COUNT}


def test_maps_that_are_given_are_no_branches() -> None:
    maps = [torch.randn(5, 64, 8, 12) for _ in range(3)]
    result = selkern.check(selkern.SKFusion(64, 3), maps)
    assert result.broken == ()
    assert WINDOWS not in {finding.rule for finding in result.findings}
    assert GATE in {finding.rule for finding in result.findings}


@pytest.mark.parametrize("name", ["seresnet_mini", "resnet_mini", "sknet_mini_sum"])
def test_networks_without_a_unit(name: str) -> None:
    with pytest.raises(UsageError, match="no selective-kernel unit ran"):
        selkern.check(selkern.create_model(name), torch.randn(5, 3, 48, 56))


def test_inputs_are_found() -> None:
    assert find_inputs(selkern.SelectiveKernel(64)).shape == (5, 64, 64, 96)
    assert find_inputs(selkern.SelectiveKernel(32, dims=3)).shape == (5, 32, 12, 16, 20)
    assert find_inputs(selkern.create_model("sknet_mini", in_chans=1)).shape == (5, 1, 64, 96)
    assert find_inputs(selkern.SelectiveKernel(64, kernels=(3,)), (64, 9, 9)).shape == (5, 64, 9, 9)


OWN = """
import torch
from neighbour import WIDTH
import selkern
class Unit(selkern.SelectiveKernel):
    def __init__(self, width=WIDTH):
        super().__init__(width)
instance = Unit()
def number(): return 7
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 64\n")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["sknet26"], 0, "sknet26: 8 selective-kernel units, 16,746,408 parameters, run on (5, 3, 64, 96)"),
        (["sknet_mini.digits"], 1, "16 rules obeyed, 1 broken: d = max(C / r, 32)"),
        (["selkern:SKAttention", "--with", "channel=64"], 1, "BROKEN  the gate is linear, BN, ReLU, linear"),
        (["{}/own.py:Unit"], 0, "0 broken"),
        (["{}/own.py:Unit", "--with", "width=96", "--input", "96,8,12"], 0, "run on (5, 96, 8, 12)"),
        (["{}/own.py:instance"], 0, "1 selective-kernel unit, 8,768 parameters"),
    ],
)
def test_command(own: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, text: str) -> None:
    assert main(["check", *(word.format(own) for word in words)]) == code
    assert text in capsys.readouterr().out


def test_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "selkern:SKAttention", "--with", "64", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["input"] == [5, 64, 64, 96]
    gate = next(finding for finding in result["findings"] if finding["rule"] == GATE)
    assert gate["holds"] is False
    assert gate["evidence"] == ["linear 64-32, linear 32-256, softmax"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sknet5"], "unknown model 'sknet5' | sknet5 | did you mean sknet50"),
        (["seresnet_mini"], "no selective-kernel unit ran | Trunk | "),
        (["{}/none.py:Unit"], "no such file | "),
        (["{}/bad.py:Unit"], "cannot be run (ModuleNotFoundError: No module named 'nothing_of_this_name')"),
        (["{}/own.py:Other"], "has no 'Other'"),
        (["{}/own.py:number"], "gives a int, no torch module"),
        (["no_such_package:Unit"], "no_such_package cannot be imported"),
        (["selkern:SelectiveKernel"], "cannot be made (TypeError: "),
        (["selkern:SelectiveKernel", "--with", "a, b"], "not arguments: 'a, b' | --with"),
        (["selkern:SelectiveKernel", "--with", "64)+(1"], "not arguments: '64)+(1' | --with"),
        (["selkern:SelectiveKernel", "--with", "64", "--input", "3,8,8"], "the model does not run on (5, 3, 8, 8)"),
        (["selkern:SelectiveKernel", "--with", "64", "--input", "64x8"], "'64x8' is no shape | --input"),
    ],
)
def test_mistakes_are_one_line(own: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert main(["check", *(word.format(own) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert line in captured.err
    assert len(captured.err.splitlines()) == 1
