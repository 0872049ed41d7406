"""What is chosen and shown, what is left as it is and why, and what is refused: the model stays as it was."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import selkern
from selkern.adapt.unit import SelectiveConv
from selkern.errors import UsageError
from selkern.models.cost import count

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def block(inputs: int, outputs: int, stride: int = 1, k: int = 3) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, k, stride=stride, padding=k // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs), act=nn.ReLU(inplace=True)))


def network() -> nn.Module:
    stages = [(3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 2), (32, 32, 1)]
    parts = {f"b{i}": block(*sizes) for i, sizes in enumerate(stages)}
    return nn.Sequential(
        OrderedDict(**parts, point=block(32, 32, k=1), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    )


def convs(*numbers: int) -> tuple[str, ...]:
    return tuple(f"b{number}.conv" for number in numbers)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("auto", convs(3, 4, 5)),
        ("*", convs(0, 1, 2, 3, 4, 5)),
        ("b1", convs(1)),
        ("b[12].*", convs(1, 2)),
        ("b3.conv", convs(3)),
        (["b0", "b5.conv"], convs(0, 5)),
        ("b0, b[1,5].conv,", convs(0, 1, 5)),
        ((name for name in ("b0", "b2")), convs(0, 2)),
        (["last stage"], convs(4, 5)),
        (re.compile(r"^b[45]\."), convs(4, 5)),
        (lambda _name, module: module.stride == (2, 2), convs(2, 4)),
        ("last stage", convs(4, 5)),
        ("last 2 stages", convs(2, 3, 4, 5)),
        ("last 3 stages", convs(0, 1, 2, 3, 4, 5)),
    ],
    ids=lambda value: "function" if callable(value) else "generator" if isinstance(value, Generator) else str(value),
)
def test_where(where: Any, expected: tuple[str, ...]) -> None:
    plan = selkern.selectify_plan(network(), example=X, where=where, budget=1.0)
    assert plan.changed == expected


def test_auto_stays_within_its_budget_from_the_end() -> None:
    whole = selkern.selectify_plan(network(), example=X, budget=1.0)
    assert whole.changed == convs(3, 4, 5)
    share = (whole.macs[1] - whole.macs[0]) / whole.macs[0]
    assert 0 < share < 1
    less = selkern.selectify_plan(network(), example=X, budget=0.9 * share)
    assert less.changed == convs(4, 5)
    assert less.left_out[convs(3)[0]].startswith("is beyond the budget")
    assert (less.macs[1] - less.macs[0]) / less.macs[0] <= 0.9 * share
    assert not selkern.selectify_plan(network(), example=X, budget=0).changed


@pytest.mark.parametrize("form", ["residual", "widened"])
def test_costs_are_what_is_counted(form: Any) -> None:
    model = network()
    plan = selkern.selectify_plan(model, example=X, where="*", form=form, branches=3)
    selective = selkern.selectify(model, example=X, where="*", form=form, branches=3)
    for side, changed in enumerate((model, selective)):
        cost = count(changed, 16)
        assert (plan.parameters[side], plan.macs[side]) == (cost.parameters, cost.macs)
    rows = [row for row in plan.rows if not row.reason]
    assert sum(row.parameters[1] - row.parameters[0] for row in rows) == plan.parameters[1] - plan.parameters[0]
    assert sum(row.macs[1] - row.macs[0] for row in rows) == plan.macs[1] - plan.macs[0]


def test_the_table() -> None:
    plan = selkern.selectify_plan(network(), example=X, where=["b4", "b5"], pointwise=True, form="residual")
    lines = str(plan).splitlines()
    assert lines[0].split() == ["module", "was", "becomes", "parameters", "MMACs"]
    assert lines[2].startswith("b4.conv  3x3/2 32-32, BatchNorm2d, ReLU  SK of 3, 5: + 3x3/2 d2 depthwise; d 32")
    assert lines[-1] == "largest difference on the example: 0 in eval mode, 0 in train mode"
    assert len({len(line) for line in lines[:-1]}) == 1
    stored = json.loads(plan.to_json())
    assert [row["module"] for row in stored["rows"]] == ["b4.conv", "b5.conv"]
    assert stored["differences"] == {"evaluating": 0.0, "training": 0.0}
    alone = selkern.selectify_plan(network(), example=X[:1, :, :4, :4], where="b5")
    assert str(alone).splitlines()[-1].endswith("0 in eval mode, not measured in train mode")


def test_many_that_stay_for_one_reason_are_one_line() -> None:
    model = nn.Sequential(block(3, 8), *[block(8, 8, k=1) for _ in range(5)])
    plan = selkern.selectify_plan(model, example=X, where="*")
    assert len(plan.left_out) == 5
    assert "1.conv and 4 more" in str(plan)
    assert len(str(plan).splitlines()) == 6


class Net(nn.Module):
    """A network whose forward is a function of its parts."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(inputs: int = 3, outputs: int = 3, k: int = 3, **kwargs: Any) -> nn.Module:
    return nn.Conv2d(inputs, outputs, k, **{"padding": k // 2, **kwargs})


def tied() -> nn.Module:
    net = Net(lambda s, x: s.b(s.a(x)), a=conv(), b=conv())
    net.get_submodule("b").register_parameter("weight", net.get_parameter("a.weight"))
    return net


def twice_named() -> nn.Module:
    part = conv()
    return Net(lambda s, x: s.other(x), a=part, other=part)


class Listed(nn.Module):
    """Keeps its convolution in a list as well, and calls it there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fine = conv(), conv()
        self.steps = [self.a]

    def forward(self, x: Tensor) -> Tensor:
        return self.fine(self.steps[0](x))


def quantised() -> nn.Module:
    kind: Any = torch.ao.nn.quantized.Conv2d
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Net(lambda s, x: s.fine(x), a=kind(3, 3, 3), fine=conv())


def script(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


def scripted_part() -> nn.Module:
    part = script(nn.Sequential(conv()))
    return Net(lambda s, x: s.fine(s.a(x)), a=part, fine=conv())


def own_code(s: Any, x: Tensor) -> Tensor:
    return s.fine(F.conv2d(x, s.a.weight, s.a.bias, padding=1))


def both(s: Any, x: Tensor) -> Tensor:
    return s.fine(s.a(x)) + s.a.weight.sum()


class Wrapped(nn.Conv2d):
    """Adds something to what it convolves."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def hooked() -> nn.Module:
    net = Net(lambda s, x: s.fine(s.a(x)), a=conv(), fine=conv())
    net.get_submodule("a").register_forward_hook(_more)
    net.get_submodule("fine").register_forward_hook(_nothing)  # which changes nothing
    return net


def _more(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output + 1


def _nothing(*_: Any) -> None: ...


class Odd(nn.Conv2d):
    """Changes its input before it convolves."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(2))


class Curious(nn.Module):
    """Asks its convolution for what a unit does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fine = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        padding: Any = self.a.padding
        return self.fine(self.a(x)) / padding[0]


class Particular(nn.Module):
    """Does something else where the norm is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.fine = conv(), nn.BatchNorm2d(3), conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.fine(self.bn(self.a(x))) + (0 if isinstance(self.bn, nn.BatchNorm2d) else 0.5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Net(lambda s, x: s.fine(s.a(s.a(x))), a=conv(), fine=conv()), "runs 2 times in one pass"),
        (tied, "shares its weight with b.weight"),
        (twice_named, "is shared: it is a and other"),
        (lambda: Net(own_code, a=conv(), fine=conv()), "its weight is read by the model's own code without a call"),
        (lambda: Net(both, a=conv(), fine=conv()), "its weight is read by the model's own code without a call"),
        (lambda: Net(lambda s, x: s.fine(x), a=conv(), fine=conv()), "does not run on the example"),
        (lambda: Net(lambda s, x: s.fine(s.a(x)), a=nn.ConvTranspose2d(3, 3, 3), fine=conv()), "is transposed"),
        (lambda: Net(lambda s, x: s.fine(s.a(x)), a=conv(k=4), fine=conv()), "has an even kernel, 4x4"),
        (lambda: Net(lambda s, x: s.fine(s.a(x)), a=Wrapped(3, 3, 3), fine=conv()), "is a Wrapped, which computes"),
        (hooked, "has a hook, which changes its result"),
        (lambda: Net(lambda s, x: s.fine(s.a(x)), a=Odd(3, 3, 3), fine=conv()), "changes its input"),
        (lambda: Net(lambda s, x: s.a(s.fine(x).mean((2, 3), keepdim=True)), a=conv(k=1), fine=conv()), "one position"),
        (lambda: Net(lambda s, x: torch.stack([s.a(y) for y in s.fine(x)]), a=conv(), fine=conv()), "runs 2 times"),
        (lambda: Net(lambda s, x: s.fine(s.a(x[0])[None]), a=conv(), fine=conv()), "without a batch axis"),
        (quantised, "is quantised"),
        (scripted_part, "is scripted"),
        (lambda: nn.Sequential(OrderedDict(a=selkern.SelectiveKernel(3, groups=1))), "is part of a selective kernel"),
        (Listed, "is called past its name"),
        (Curious, "no attribute 'padding'"),
        (Particular, "is not exact here: outputs differ by"),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_is_left_with_the_reason(make: Callable[[], nn.Module], reason: str) -> None:
    model = make()
    shown = str(model)
    plan = selkern.selectify_plan(model, example=X, where="*", pointwise=True)
    name = next(name for name in plan.left_out if name == "a" or name.startswith("a."))
    assert reason in plan.left_out[name]
    if hasattr(model, "fine"):
        assert plan.changed == ("fine",)
    assert str(model) == shown


def with_a_graph() -> nn.Module:
    net = Net(lambda s, x: s.a(x), a=conv())
    net.cache = net.get_parameter("a.weight") * 2
    return net


def ends(**more: nn.Module) -> dict[str, nn.Module]:
    """A norm and an activation, beside convolutions."""
    return {"a": conv(), "b": conv(), "norm": nn.BatchNorm2d(3), "act": nn.ReLU(inplace=True), **more}


@pytest.mark.parametrize(
    ("run", "parts", "was"),
    [
        (lambda s, x: s.act(s.norm(s.a(x))), {}, "BatchNorm2d, ReLU"),
        (lambda s, x: s.act(s.norm(s.a(x)) + x), {}, "BatchNorm2d"),
        (lambda s, x: s.act(s.norm(s.a(x))) + s.act(s.b(x)), {}, "BatchNorm2d"),
        (lambda s, x: s.act(s.norm(s.a(x))) + s.norm(s.b(x)), {}, ""),  # a norm that runs twice
        (lambda s, x: s.act(s.norm(y := s.a(x))) + y, {}, ""),
        (lambda s, x: [(y := s.a(x)), s.norm(y)], {}, ""),
        (lambda s, x: [(y := s.norm(s.a(x))), F.relu(y)], {}, "BatchNorm2d"),
        (lambda s, x: (y := s.norm(s.a(x))).relu() + y, {}, "BatchNorm2d"),
        (lambda s, x: s.norm(s.a(x)).clamp(max=0.5), {}, "BatchNorm2d"),
        (lambda s, x: s.act(s.norm(s.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), {"norm": nn.LayerNorm(3)}, ""),
        (lambda s, x: s.act(s.norm(s.a(x))), {"norm": nn.InstanceNorm2d(3, affine=True)}, "InstanceNorm2d, ReLU"),
        (lambda s, x: s.act(s.norm(s.a(x))), {"act": nn.PReLU(3)}, "BatchNorm2d, PReLU"),
        (lambda s, x: s.act(s.norm(s.a(x))) + s.act(x), {"act": nn.GELU()}, "BatchNorm2d"),
        (lambda s, x: s.norm(s.act(s.a(x))), {}, "ReLU"),
        (lambda s, x: s.norm(s.a(x)), {"norm": nn.Conv2d(3, 3, 1)}, ""),
        (lambda s, x: s.norm(s.a(x)), {"norm": nn.MaxPool2d(3, 1, 1)}, ""),
        (lambda s, x: s.norm(s.a(x)), {"norm": nn.Dropout(0.5)}, ""),
        (lambda s, x: s.norm(s.a(x)).relu() + s.norm(x).relu(), {"norm": nn.Identity()}, ""),
    ],
)  # fmt: skip
def test_what_follows_is_found_by_the_flow_of_tensors(run: Any, parts: dict[str, nn.Module], was: str) -> None:
    model = Net(run, **ends(**parts))
    plan = selkern.selectify_plan(model, example=X, where="a")
    assert plan.changed == ("a",)
    assert (plan.differences.evaluating, plan.differences.training) == (0, 0)
    assert plan.rows[0].was == ", ".join(["3x3 3-3", *([was] if was else [])])


COUNT = itertools.count()


class Named(nn.Module):
    """Takes named arguments, and returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, pixels: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"out": self.a(pixels) * scale}


class Standardised(nn.Conv2d):
    """Makes its weight anew in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


def test_normalised_weights_stay_normalised() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old: nn.Module = nn.utils.spectral_norm(conv())
    new = nn.utils.parametrizations.spectral_norm(conv())
    model = nn.Sequential(old, new, nn.utils.parametrizations.weight_norm(conv()))
    plan = selkern.selectify_plan(model, example=X, where="*", budget=9.0)
    assert plan.changed == ("0", "1", "2")
    assert (plan.differences.evaluating, plan.differences.training) == (0, 0)


def test_a_weight_that_is_computed_cannot_be_widened() -> None:
    model = Net(lambda s, x: s.fine(s.a(x)), a=Standardised(3, 3, 3), fine=conv())
    assert selkern.selectify_plan(model, example=X, where="*").changed == ("a", "fine")
    plan = selkern.selectify_plan(model, example=X, where="*", form="widened")
    assert "makes its weight anew" in plan.left_out["a"]
    assert plan.changed == ("fine",)


def test_examples_of_every_form() -> None:
    for example in (X, (X,), (X, 2.0), {"pixels": X, "scale": 2.0}):
        assert selkern.selectify_plan(Named(), example=example, where="a").changed == ("a",)
    listed = Net(lambda s, images: [s.a(image[None]) for image in images], a=conv())
    assert selkern.selectify_plan(listed, example=[X[0]], where="a").changed == ("a",)  # as detectors take images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "b7*"}, r"no convolution matches 'b7\*' \| where \| nearest names with a convolution: b5, b4, b3$"),
        ({"where": "nope.*"}, r"no convolution matches 'nope\.\*' .*its convolutions are b0.conv, .* and 4 more$"),
        ({"where": None}, r"^None is no pattern \| where \| give a glob"),
        ({"where": 3}, r"^3 is no pattern \| where"),
        ({"where": ["b0", 3]}, r"^3 is no pattern \| where"),
        ({"where": nn.ReLU()}, r"^ReLU\(\) is no pattern"),
        ({"where": []}, r"^no pattern is given \| where"),
        ({"where": " "}, r"^the pattern is empty \| where"),
        ({"where": "b0,,b1"}, r"^one of the patterns is empty \| where"),
        ({"where": lambda _name: True}, r"where\(\) fails on b0\.conv: .*positional argument"),
        ({"where": "flat"}, r"^flat is a Flatten, not a convolution \| where \| its convolutions are"),
        ({"where": re.compile("layer")}, "no convolution matches 'layer'"),
        ({"where": lambda _name, _module: False}, "true for no convolution"),
        ({"where": "pool"}, "pool is an AdaptiveAvgPool2d, not a convolution"),
        ({"where": "point"}, "nothing can be changed.*1x1, which pointwise=True takes"),
        ({"where": "last 9 stages"}, "maps of 3 sizes"),
        ({"example": None}, "no example to run the network on"),
        ({"example": "photo.jpg"}, "the example holds no tensor"),
        ({"example": torch.randn(2, 5, 16, 16)}, "the network does not run on the example: .*channels"),
        ({"example": X * float("nan")}, "has no finite number, nothing can be compared"),
        ({"example": X[:0], "where": "b5"}, "is empty, nothing can be compared"),
        ({"branches": 1}, "at least 2"),
        ({"branches": 0}, "at least 2"),
        ({"branches": 2.5}, "branches must be a whole number"),
        ({"groups": 0}, "groups must be a whole number"),
        ({"form": "wide"}, "form must be 'residual' or 'widened'"),
        ({"gate_norm": "instance"}, "^gate_norm must be one of"),
        ({"inplace": "no"}, "inplace must be True or False, got 'no'"),
        ({"pointwise": "yes"}, "pointwise must be True or False, got 'yes'"),
        ({"budget": -1}, "budget must be a share"),
        ({"budget": float("nan")}, "budget must be a share"),
        ({"budget": 0}, "nothing can be changed.*beyond the budget"),
    ],
)
def test_wrong_arguments_are_one_line_and_change_nothing(options: dict[str, Any], message: str) -> None:
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shown, drawn = str(model), torch.random.get_rng_state()
    with pytest.raises(UsageError, match=message) as caught:
        selkern.selectify(model, **{"example": X, "inplace": True, **options})
    assert "\n" not in str(caught.value)
    assert (str(model), model.training) == (shown, True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: script(nn.Sequential(conv())), "is scripted"),
        (lambda: network().to("meta"), "is on the meta device"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "has lazy modules"),
        (lambda: selkern.selectify(network(), example=X), "holds selective kernels of selectify already"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), "nothing can be changed.*no spatial convolution"),
        (conv, "nothing can be changed.*is the model itself"),
        (lambda: "resnet50", "a network is an nn.Module, got str"),
        (with_a_graph, "cannot be copied"),
        (lambda: torch.compile(network(), backend="eager"), "is compiled"),
        (lambda: Net(lambda s, x: s.a(x) + next(COUNT), a=conv()), "gives other outputs in a second run"),
        (lambda: Net(lambda s, x: str(s.a(x)), a=conv()), "holds no tensor to compare"),
    ],
)
def test_networks_that_cannot_be_changed(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        selkern.selectify(make(), example=X, budget=9.0)


@pytest.mark.parametrize("where", ["auto", "*", "last stage", "1"])
def test_a_network_without_convolutions(where: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    with pytest.raises(UsageError, match=r"nothing can be changed.*it has no spatial convolution"):
        selkern.selectify(model, example=X, where=where)
    assert not selkern.selectify_plan(model, example=X, where=where).rows


def test_outputs_may_hold_what_is_not_finite_beside_numbers() -> None:
    model = Net(lambda s, x: s.a(x).masked_fill(x > 0, -torch.inf), a=conv())
    assert selkern.selectify_plan(model, example=X, where="a").changed == ("a",)
    absent = Net(lambda s, x: s.a(x) * (torch.nan if s.training else 1), a=conv())
    differences = selkern.selectify_plan(absent, example=X, where="a").differences
    assert (differences.evaluating, differences.training) == (0, None)


def test_a_plan_changes_nothing() -> None:
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    assert selkern.selectify_plan(model, example=X).changed
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert not any(isinstance(module, SelectiveConv) for module in model.modules())


def test_in_place_changes_the_model_itself_and_a_copy_does_not() -> None:
    model = network()
    weight = model.get_parameter("b5.conv.weight")
    copied = selkern.selectify(model, example=X, where="b5")
    assert copied is not model
    assert isinstance(model.get_submodule("b5.conv"), nn.Conv2d)
    assert selkern.selectify(model, example=X, where="b5", inplace=True) is model
    unit = model.get_submodule("b5.conv")
    assert isinstance(unit, SelectiveConv)
    assert unit.conv.weight is weight
    assert [type(module) for name, module in model.get_submodule("b5").named_children()] == [
        SelectiveConv, nn.Identity, nn.Identity,
    ]  # fmt: skip


def test_the_gate_is_drawn_from_the_callers_random_numbers() -> None:
    def gate(seed: int) -> Tensor:
        torch.manual_seed(seed)
        selective = selkern.selectify(model, example=X, where="b5")
        return selective.get_parameter("b5.conv.gate.fc1.weight")

    model = network()
    assert torch.equal(gate(1), gate(1))
    assert not torch.equal(gate(1), gate(2))


def test_modes_and_frozen_weights_are_kept() -> None:
    model = network().train().requires_grad_(False)
    model.get_submodule("b5").eval()
    unit = selkern.selectify(model, example=X, where="b5").get_submodule("b5.conv")
    assert isinstance(unit, SelectiveConv)
    assert not any(module.training for module in unit.modules())
    learns = {name for name, p in unit.named_parameters() if p.requires_grad}
    assert learns == {"further.0.conv.weight", *(f"gate.{name}" for name, _ in unit.gate.named_parameters())}
