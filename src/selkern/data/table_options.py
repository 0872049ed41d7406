"""How the user says that a table is to be read. Imports nothing heavy: the commands' options hold it."""

from __future__ import annotations

from dataclasses import dataclass

from selkern.errors import UsageError

SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How data are to be read: a table of images (.csv, .tsv, Parquet) where it does not say so itself, shards."""

    path_column: str | None = None
    """Column of a table that holds the image files (of Parquet, the images); by default found by its name."""
    label_column: str | None = None
    """Column of a table that holds the class names; by default found by its name."""
    split_column: str | None = None
    """Column of a table that holds train, val or test; by default the one called split, if any."""
    sep: str | None = None
    """Character between the columns of a .csv: "," ";" "|" or "tab"; by default found in its first line."""
    local_cache: str | None = None
    """Folder of this machine to which shards of a store (s3://, https://) are copied whole when first needed."""

    def __post_init__(self) -> None:
        if self.sep is not None and self.separator not in SEPARATORS:
            raise UsageError(f"sep is {self.sep!r}", "--sep", 'give one of "," ";" "|" and "tab"')

    @property
    def separator(self) -> str | None:
        """The character itself."""
        return "\t" if self.sep in ("tab", "\\t") else self.sep
