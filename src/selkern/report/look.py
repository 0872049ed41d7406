"""A page of its own for one image: what the network says, and what every unit chose and saw as it is enlarged."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from selkern.report.page import render_page
from selkern.selection.look import Look, picture
from selkern.selection.plots import INK, drawing, to_svg
from selkern.selection.preference import Selected

_WRITTEN = 16  # units up to which the figures are written into the strip


def render_look(each: Look, selected: Selected, back: str) -> str:
    """One self-contained page.

    Args:
        back: address of the report it belongs to.
    """
    return render_page(
        "look.html.j2",
        look=each,
        zooms=selected.zooms,
        units=selected.units,
        n=selected.n,
        back=back,
        pictures=Markup(to_svg(_pictures(each, selected))),
        strip=Markup(to_svg(_strip(each, selected))),
    )


def _pictures(each: Look, selected: Selected) -> Figure:
    """The image at every enlargement, with the fields of its units drawn on it."""
    columns = len(selected.zooms)
    with drawing(7.2, 7.2 / columns + 0.3) as figure:
        for z, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
            picture(axes, each, z, selected.zooms[z])
        return figure


def _strip(each: Look, selected: Selected) -> Figure:
    """What every unit chose, a row per enlargement, a column per unit."""
    rows, columns = each.lean.shape
    with drawing(7.2, 0.32 * rows + 0.9) as figure:
        axes = figure.add_subplot()
        axes.imshow(each.lean, cmap="PuOr", vmin=-2.5, vmax=2.5, aspect="auto")
        axes.grid(visible=False)
        axes.set_yticks(range(rows), [f"{zoom:.1f}x" for zoom in selected.zooms])
        step = max(columns // _WRITTEN, 1)
        turned = 45 if columns > 8 else 0
        axes.set_xticks(
            range(0, columns, step), [u.label for u in selected.units[::step]], rotation=turned, parse_math=False
        )
        if columns <= _WRITTEN:
            for (z, u), lean in np.ndenumerate(each.lean):
                colour = INK if abs(lean) < 1.6 else "white"
                axes.text(u, z, f"{lean:+.1f}", ha="center", va="center", fontsize=8, color=colour)
        return figure
