"""inputs.json: where a run's data and first weights lie, and by what its images are known again.

The rest is in the run's other files: the options in config.yaml, which image was in which part in split.csv. Runs of
earlier versions have no inputs.json; what can be known of them without it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from selkern.data.identity import fingerprints
from selkern.data.saved import digest
from selkern.data.sources import Source
from selkern.errors import CheckpointError
from selkern.files import write_atomic

_LARGEST = 1 << 26  # bytes of an inputs.json; 100,000 images make 6,000,000


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run remembers of what it was started on."""

    data: str
    """Absolute, links resolved; empty for data that lie in no file."""
    beside: str
    """The same, from the run's folder."""
    images: int
    """How many there are in all splits."""
    split: str
    """`saved.digest` of split.csv."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of the images, by their names in split.csv; of an even sample where there are very many."""
    weights: str = ""
    """The file of the first weights, absolute; empty for random ones."""
    norms: Mapping[str, Any] = field(default_factory=dict)
    """The network's norms, which it may have from those weights."""

    def moved(self, folder: Path, data: str) -> Inputs:
        """With the data at another place."""
        return replace(self, data=resolved(data), beside=_from(folder, resolved(data)))


def resolved(data: str) -> str:
    """A path absolute and without links; empty for data that lie in no file."""
    if data == "digits" or data.startswith("digits:") or not data.strip():
        return ""
    try:
        return str(Path(data).expanduser().resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links; ~name, where nobody is called so
        return data


def write_inputs(folder: Path, given: str, source: Source, weights: Path | None, norms: Mapping[str, Any]) -> None:
    """Read the images' bytes, as `fingerprints` does, and write a run's inputs.json.

    Args:
        folder: of the run.
        given: the data, as the user wrote it.
        source: opened as the run does.
        weights: what the run starts from.
        norms: of its network.
    """
    data = resolved(given)
    rows = list(source.split_rows())
    inputs = Inputs(
        data=data,
        beside=_from(folder, data),
        images=sum(map(len, source.parts)),
        split=digest(rows) if rows else "",
        fingerprints=fingerprints(source),
        weights="" if weights is None else str(weights.resolve()),
        norms=dict(norms),
    )
    save_inputs(folder, inputs)


def save_inputs(folder: Path, inputs: Inputs) -> None:
    """Write a run's inputs.json."""
    write_atomic(folder / "inputs.json", json.dumps(asdict(inputs), indent=0))


def read_inputs(folder: Path) -> Inputs | None:
    """A run's inputs.json; None where it has none. Raises CheckpointError for one that is not as it was written."""
    file = folder / "inputs.json"
    if not file.is_file():
        return None
    fix = "restore it from a copy, or move it away"
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"larger than {_LARGEST:,} bytes")
        values = json.loads(file.read_text(encoding="utf-8"))
        inputs = Inputs(**values)
        texts = (inputs.data, inputs.beside, inputs.split, inputs.weights)
        tables = (inputs.fingerprints, inputs.norms)
        if not all(isinstance(text, str) for text in texts) or type(inputs.images) is not int:
            raise ValueError("a value of a wrong type")
        if not all(isinstance(table, dict) and all(isinstance(v, str) for v in table.values()) for table in tables):
            raise ValueError("a table of a wrong type")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not what was written ({error})"[:200], str(file), fix) from error
    return inputs


def _from(folder: Path, data: str) -> str:
    try:
        return os.path.relpath(data, folder.resolve()) if data else ""
    except ValueError:  # another drive
        return ""
