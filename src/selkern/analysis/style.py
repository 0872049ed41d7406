"""How every figure looks: colours, fonts, an empty figure, and figures as files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

INK, MUTED, ACCENT, SECOND = "#1c2733", "#7b8794", "#0b6e99", "#d9730d"
LONGEST = 20  # characters of a class name in a figure
SHADES = ("#9ccbe0", "#3f97be", "#0b4f6c")  # small to large objects
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#c5ced6",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8edf1",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "svg.hashsalt": "selkern",  # the same figure gives the same file
}


@contextmanager
def _saving() -> Iterator[None]:
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks: boxes will do
        yield


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    data = io.BytesIO()
    with _saving():
        figure.savefig(data, format="png")
    return data.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element to put into a page."""
    text = io.StringIO()
    with _saving():
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()[text.getvalue().index("<svg") :]


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of a size in inches, in the style of all."""
    with rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def short(name: str) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def shade(number: int, of: int) -> str:
    """Colour of one of several ordered groups, light to dark."""
    return SHADES[round(number * (len(SHADES) - 1) / max(of - 1, 1))]
