"""The chart of `gpu.py`: milliseconds of the unit and the kernels, images per second of the networks."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from benchmarks import gpu_plan as plan
from benchmarks.chart import bare
from benchmarks.gpu_plan import COMPILED, WHOLE, Row
from benchmarks.gpu_report import Results
from benchmarks.machine import number
from selkern.selection.plots import ACCENT, INK, MUTED, drawing, to_svg

_GREY = "#b3bfc9"
_MOST = 9  # bars of a panel
_PANELS = (
    ("SKNet-50, training: images/s", "train", "step"),
    ("SKNet-50, inference: images/s", "infer", "step"),
    ("unit, forward: ms", "unit", "forward"),
    ("unit, forward + backward: ms", "unit", "forward + backward"),
    ("Fuse: ms", "kernel", "fuse_select: Fuse"),
    ("Select: ms", "kernel", "fuse_select: Select"),
    ("norms, Fuse, Select, forward + backward: ms", "kernel", f"fuse_select: {WHOLE}"),
    ("convolutions, forward + backward: ms", "kernel", f"convolution: {WHOLE}"),
)


def draw(results: Results) -> str | None:
    """An SVG file, None where nothing was measured that it shows."""
    case = plan.stages(results.tiny)[0].case("bfloat16")
    panels = []
    for title, part, what in _PANELS:
        rows = [r for r in results.rows if r.part == part and r.what == what and r.ms and r.case in (case, "bfloat16")]
        if rows:
            panels.append((title, rows[:_MOST]))
    if not panels:
        return None
    lines = -(-len(panels) // 2)
    with drawing(10.0, 1.9 * lines + 0.5) as figure:
        for place, (title, rows) in enumerate(panels):
            _bars(figure.add_subplot(lines, 2, place + 1), title, rows)
        card = results.machine.get("gpu") or "no GPU: interpreted, the times mean nothing"
        when = f"torch {results.machine.get('torch')}, {results.machine.get('date')}"
        foot = f"{card}, {when}. Medians; unit and kernels: {case}."
        figure.supxlabel(foot, fontsize=7, color=MUTED, x=0.01, ha="left")
        return to_svg(figure)


def _bars(axes: Axes, title: str, rows: Sequence[Row]) -> None:
    values, places = [row.images_per_s or row.ms or 0.0 for row in rows], list(range(len(rows)))
    axes.barh(places, values, height=0.72, color=[_colour(row.variant) for row in rows])
    for place, value in zip(places, values, strict=True):
        axes.text(value, place, f" {number(value)}", va="center", fontsize=8, color=INK)
    bare(axes, title, [row.variant for row in rows], 1.2 * max(values), len(rows))


def _colour(variant: str) -> str:
    if variant.startswith(("triton", plan.OURS)):
        return ACCENT
    return MUTED if COMPILED in variant else _GREY
