"""The templates of the pages, and the style that all of them have inside."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


def render_page(name: str, **values: Any) -> str:
    """One self-contained page from a template of this folder, with `report.css` as its `style`."""
    folder = files("selkern.analysis")
    # Autoescape is on: class names and file names are the user's, and may hold anything.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(folder.joinpath(name).read_text(encoding="utf-8"))
    return template.render(style=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")), **values)
