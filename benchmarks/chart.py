"""The chart of a benchmark: time and memory of ours beside timm's and the article's, one panel per comparison."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.goals import ARTICLE, BARE, GROWTH, HELD, TIMM
from benchmarks.machine import number
from benchmarks.results import Results, Row, cases
from selkern.measure.timing import Spread
from selkern.selection.plots import ACCENT, INK, MUTED, STYLE, to_png

_GREY, _PALE = "#b3bfc9", "#dfe5ea"
_HOW = "Bars: medians, with quartiles. Times sign: how many times better than timm, or than the article's code."
_WORKLOADS = ("infer", "train", "memory", "article", "layer")
_PANELS, _COLUMNS = 10, 2
_WHISKER = {"elinewidth": 0.8, "ecolor": INK}


def draw(results: Results, foot: str) -> bytes | None:
    """The chart as a PNG file, None where nothing was measured that it shows."""
    panels = _panels(results)
    if not panels:
        return None
    lines = -(-len(panels) // _COLUMNS)
    heights = [max(len(rows) for rows in panels[i : i + _COLUMNS]) for i in range(0, len(panels), _COLUMNS)]
    with rc_context(STYLE):
        columns = min(_COLUMNS, len(panels))
        size = (4.9 * columns + 0.3, 0.24 * sum(heights) + 0.62 * lines + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(lines, columns, height_ratios=[height + 1 for height in heights])
        for place, rows in enumerate(panels):
            _panel(
                figure.add_subplot(grid[place // columns, place % columns]), results, rows, heights[place // columns]
            )
        figure.supxlabel(f"{foot}\n{_HOW}", fontsize=7, color=MUTED, x=0.01, ha="left")
    return to_png(figure)


def _panels(results: Results) -> list[list[Row]]:
    """Rows of each comparison that is drawn, the clearest first."""
    panels = []
    for case in cases(results.rows):
        rows = [row for row in results.rows if (row.workload, row.case, row.quantity) == case]
        if case[0] in _WORKLOADS and case[2] != GROWTH and len(rows) > 1:
            against = {row.against for row in rows}
            panels.append([row for row in rows if row.variant in against])
            panels[-1] += [row for row in rows if row.variant not in against]

    def order(rows: list[Row]) -> tuple[int, bool]:
        return _WORKLOADS.index(rows[0].workload), rows[0].quantity == HELD

    panels.sort(key=order)
    first = [rows for rows in panels if rows[0].workload != "layer"]
    return (first + [rows for rows in panels if rows[0].workload == "layer"])[:_PANELS]


def _panel(axes: Axes, results: Results, rows: Sequence[Row], places_in_line: int) -> None:
    """Bars of one comparison, as high as those of the panel beside it."""
    spreads = [row.spread for row in rows]
    places = list(range(len(rows)))
    medians = [spread.median for spread in spreads]
    axes.barh(
        places,
        medians,
        height=0.72,
        color=[_colour(row.variant) for row in rows],
        xerr=_whiskers(spreads),
        error_kw=_WHISKER,
    )
    for place, row, spread in zip(places, rows, spreads, strict=True):
        better = results.advantage(row)
        text = number(spread.median) + (f"   {better.median:.2f}x" if better else "")
        axes.text(spread.high + 0.015 * max(medians), place, text, va="center", fontsize=8, color=INK)
    first = rows[0]
    name = {"infer": "SKNet-50", "train": "SKNet-50", "memory": "SKNet-50", "article": "article's module"}
    what = name.get(first.workload, "unit")
    title = f"{what}, {first.case}: {first.quantity}, {first.unit}"
    bare(axes, title, [row.variant for row in rows], 1.3 * max(spread.high for spread in spreads), places_in_line)


def bare(axes: Axes, title: str, names: Sequence[str], right: float, places: int) -> None:
    """Names and a title for horizontal bars that carry their figures themselves: no ticks, no grid."""
    axes.set_yticks(range(len(names)), names, color=INK, fontsize=7)
    axes.set_ylim(places - 0.5, -0.5)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, right)
    axes.set_title(title, fontsize=7.8)


def _whiskers(spreads: Sequence[Spread]) -> list[list[float]]:
    return [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]


def _colour(variant: str) -> str:
    if variant.startswith("selkern"):
        return ACCENT
    return _PALE if variant == BARE else MUTED if variant.startswith((TIMM, ARTICLE)) else _GREY
