"""Rows of a model YAML that name our modules: read by ultralytics' own parser, with placeholders where ours are.

`[from, repeats, SelectiveKernel, [channels, kernels, stride, groups, reduction]]`
    kernels (3, 5), stride 1, groups 32 (or what divides the channels), reduction 16. SiLU, and a LayerNorm in the gate,
    which learns from a last batch of one image too.
`[from, repeats, SKAttention, [channels, kernels, reduction, group]]`
    kernels (1, 3, 5, 7), reduction 16, group 1.
`[[from, from, ...], 1, SKFusion, [channels, reduction, min_width]]`
    maps of one size and channel count; reduction 16, min_width 32.

What is left out has these values. Channels are those of the rows that `from` names; a number is the result's, scaled by
the width as for `Conv`, and has to be theirs with SKAttention and SKFusion.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from selkern.errors import UsageError
from selkern.layers.article import SKAttention
from selkern.layers.fusion import SKFusion
from selkern.layers.selective_kernel import SelectiveKernel

Parser = Callable[..., tuple[nn.Sequential, list[int]]]
# Each module's arguments after the channels.
NAMES = {
    "SelectiveKernel": ("kernels", "stride", "groups", "reduction"),
    "SKAttention": ("kernels", "reduction", "group"),
    "SKFusion": ("reduction", "min_width"),
}


@dataclass(frozen=True)
class Row:
    """A row that names one of our modules.

    Attributes:
        index: which row of the file.
        source: where its input comes from, as written.
        repeats: as written, before the depth of the scale.
        name: of the module.
        channels: as written, before the width of the scale; None for those of the input.
        options: the module's other arguments.
    """

    index: int
    source: Any
    repeats: int
    name: str
    channels: int | None
    options: dict[str, Any]

    @classmethod
    def of(cls, index: int, row: Sequence[Any]) -> Row:
        """A row of the file.

        Raises:
            UsageError: one input for SKFusion, or several for another; too many arguments.
        """
        source, repeats, name, written = row
        where, several = f"row {index}: {name}", isinstance(source, (list, tuple))
        if name == "SKFusion" and not (several and len(source) > 1 and repeats == 1):
            raise UsageError("SKFusion makes one map of several", where, "write [[-1, 6], 1, SKFusion, []]")
        if name != "SKFusion" and several:
            raise UsageError(f"{name} takes one map", where, f"write [-1, 1, {name}, []]")
        args = [_value(arg) for arg in written] or [None]
        if len(args) > 1 + len(NAMES[name]):
            raise UsageError(f"{len(args)} arguments", where, f"write [channels, {', '.join(NAMES[name])}], or fewer")
        if not (args[0] is None or (isinstance(args[0], int) and args[0] > 0)):
            raise UsageError(f"{args[0]!r} channels", where, "write a number, or None for those of the input")
        options = dict(zip(NAMES[name], args[1:], strict=False))
        return cls(index, source, repeats, name, args[0], options)

    @property
    def inputs(self) -> list[int]:
        """Rows whose results come in; -1 for the images."""
        sources = self.source if self.name == "SKFusion" else [self.source]
        return [source if source >= 0 else self.index + source for source in sources]

    def placeholder(self) -> list[Any]:
        """A row that ultralytics can read, whose result has as many channels."""
        source = self.source[0] if self.name == "SKFusion" else self.source
        if self.channels is None:
            return [source, self.repeats, "nn.Identity", []]
        return [source, self.repeats, "Conv", [self.channels, 1, 1]]

    def build(self, channels: Sequence[int], result: int, repeats: int) -> nn.Module:
        """The module.

        Args:
            channels: of each input.
            result: channels of its result.
            repeats: how many in turn; the first alone has a stride.

        Raises:
            UsageError: channels or arguments that cannot be.
        """
        where = f"row {self.index}: {self.name}"
        if len(set(channels)) > 1:
            raise UsageError(f"its maps have {', '.join(map(str, channels))} channels", where, "give maps of one width")
        if self.name != "SelectiveKernel" and result != channels[0]:
            what = f"keeps its {channels[0]} channels, the file asks for {result} (scaled by the width)"
            raise UsageError(what, where, "write None for the channels, or leave them out")
        try:
            if self.name == "SKFusion":
                return SKFusion(result, len(channels), norm="layer", **self.options)
            if self.name == "SKAttention":
                modules: list[nn.Module] = [SKAttention(result, **self.options) for _ in range(repeats)]
            else:
                modules = [_unit(channels[0], result, **self.options)]
                modules += [_unit(result, result, **{**self.options, "stride": 1}) for _ in range(repeats - 1)]
        except (TypeError, ValueError) as error:
            raise UsageError(str(error), where, f"write [channels, {', '.join(NAMES[self.name])}]") from error
        return modules[0] if repeats == 1 else nn.Sequential(*modules)


def _value(arg: Any) -> Any:
    """An argument as it is meant: YAML reads None as a word."""
    if isinstance(arg, str):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(arg)
    return arg


def _unit(c1: int, c2: int, kernels: Sequence[int] = (3, 5), groups: int = 32, **options: Any) -> SelectiveKernel:
    """A unit with the activation of the networks around it, and a gate that learns from a single image too."""
    shared: dict[str, Any] = {"activation": "silu", "gate_norm": "layer"}
    return SelectiveKernel(c1, c2, kernels, groups=math.gcd(c1, c2, groups), **shared, **options)


def reading(parser: Parser, note: Callable[[str], None], taken: Callable[[str], bool]) -> Parser:
    """A parser of model YAMLs that knows our modules as well.

    Ours are read as rows of ultralytics' own; further ones behind the last show what comes into them, and go again.

    Args:
        parser: of ultralytics: (d, ch, verbose) to the layers and which results are kept.
        note: takes the lines that describe the network.
        taken: whether ultralytics has a module of that name itself, which stays its.
    """

    @functools.wraps(parser)
    def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
        written = [*d["backbone"], *d["head"]]
        ours = [Row.of(i, row) for i, row in enumerate(written) if row[2] in NAMES and not taken(row[2])]
        if not ours:
            return parser(d, ch, verbose)
        rows = list(written)
        for row in ours:
            rows[row.index] = row.placeholder()
        asked = sorted({source for row in ours for source in row.inputs if source >= 0})
        probes = [[source, 1, "Conv", [8, 1, 1]] for source in asked]
        made, _ = parser({**d, "backbone": rows, "head": probes}, ch, False)
        layers = [*made.children()]
        width = {-1: ch, **{s: _conv(probe).in_channels for s, probe in zip(asked, layers[len(rows) :], strict=True)}}
        for row in ours:
            channels, placed = [width[source] for source in row.inputs], layers[row.index]
            result = channels[0] if row.channels is None else _conv(placed).out_channels
            repeats = len(placed) if isinstance(placed, nn.Sequential) else 1
            layers[row.index] = _placed(row.build(channels, result, repeats), row)
        layers = layers[: len(rows)]
        if verbose:
            for line in _table(layers, written):
                note(line)
        network = nn.Sequential(*layers)
        network.selkern = Registered()  # type: ignore[assignment]
        return network, sorted(
            source % i for i, layer in enumerate(layers) for source in _sources(layer) if source != -1
        )

    return parse_model


class Registered:
    """In a checkpoint it says which module has to be imported for what is within: loading it does so."""


def _conv(module: nn.Module) -> nn.Conv2d:
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def _placed(module: Any, row: Row) -> nn.Module:
    """With what ultralytics writes on its layers: where in the network, from where, which, how large."""
    module.i, module.f = row.index, row.source
    module.type = f"{type(module).__module__}.{type(module).__qualname__}"
    module.np = sum(p.numel() for p in module.parameters())
    return module


def _sources(layer: Any) -> list[int]:
    return [layer.f] if isinstance(layer.f, int) else [*layer.f]


def _table(layers: Sequence[Any], written: Sequence[Sequence[Any]]) -> list[str]:
    """What ultralytics prints of a network, of one whose rows are partly ours."""
    head = f"{'row':>4}  {'from':<16}{'module':<48}{'parameters':>12}  arguments"
    lines = [
        f"{layer.i:>4}  {layer.f!s:<16}{layer.type:<48}{layer.np:>12,}  {row[3]}"
        for layer, row in zip(layers, written, strict=True)
    ]
    return [head, *lines]
