"""For the API pages of the site: docstrings as their reader there knows them (mkdocs.yml)."""

from __future__ import annotations

from typing import Any

import griffe


class Sections(griffe.Extension):  # type: ignore[misc,unused-ignore]
    """The section `Example`, which it knows as `Examples`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of every module, class and function that is read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
