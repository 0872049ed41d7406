"""What every study's result can do: its figures as plain rows, as a table of pandas, as a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from selkern.errors import PackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result(ABC):
    """A result with `to_rows` and `plot`; `to_frame` follows from the first."""

    @abstractmethod
    def to_rows(self) -> list[dict[str, Any]]:
        """Plain values, one dictionary per row, for a CSV or JSON file."""

    @abstractmethod
    def plot(self) -> Figure:
        """The study's figure, for matplotlib; nothing global is touched."""

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            PackageError: pandas is not installed.
        """
        try:
            from pandas import DataFrame  # type: ignore[import-untyped, unused-ignore]
        except ImportError as error:
            raise PackageError(f"pandas cannot be imported ({error})", "to_frame", "pip install pandas") from error
        return DataFrame(self.to_rows())
