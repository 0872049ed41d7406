"""Weights files that describe themselves: safetensors whose metadata say how to use them.

    format   selkern-weights-2
    card     a `Card` as JSON
    sha256   over the card and every tensor (`_digest`), since safetensors itself has no checksum

Nothing here unpickles: a `.safetensors` file holds tensors and strings only.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn, uint8

from selkern.errors import CheckpointError, UsageError, printable
from selkern.io import write_atomic

FORMAT = "selkern-weights-2"
EXPORTED = (".onnx", ".xml", ".pt2", ".pte")  # what `selkern export` writes: no weights files
_HEADER = 16 << 20  # bytes; the names and shapes of 100,000 tensors have room in it


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a weights file says about itself.

    Attributes:
        model: architecture name, one of `list_models()`.
        classes: class names in the order of the outputs.
        in_chans: channels of the images.
        preprocess: how an image becomes the input (`Preprocess.to_dict`).
        metrics: figures measured with these weights, by name.
        source: where they come from: command, data, epoch, versions.
        norms: `norm` and `gate_norm` of the network by name; empty for "batch", which most have.
        network: of a third-party network, or one that `selectify` changed, how it is built
            (`train.network.Construction.to_dict`); empty for one that `create_model` makes.
    """

    model: str
    classes: tuple[str, ...]
    in_chans: int = 3
    preprocess: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    norms: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)

    def successor(self, classes: tuple[str, ...] | None = None) -> Card:
        """The card of a network that started from these weights and has others now: no figure holds any more."""
        names = self.classes if classes is None else classes
        return replace(self, classes=names, metrics={}, source={"started from": self.source})


def numbered(classes: int) -> tuple[str, ...]:
    """Names for classes that have none: "0", "1", ..."""
    return tuple(str(number) for number in range(classes))


def bundled() -> dict[str, Path]:
    """The weights that come with the package, by name: `MODEL.DATA`, such as sknet_mini.digits."""
    folder = Path(__file__).parent / "bundled"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def find_bundled(model: str | None, weights: str | Path) -> Path | None:
    """The file of bundled weights named "digits" (with a model) or "sknet_mini.digits"; None for anything else."""
    files = bundled()
    return files.get(f"{model}.{weights}") or files.get(str(weights))


def save_weights(path: Path, state: dict[str, Tensor], card: Card) -> None:
    """Write a weights file, whole or not at all. `state` is a model's state dict."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    values = asdict(card)
    for name in ("norms", "network"):  # versions that do not know of them read the file too
        if not values[name]:
            del values[name]
    text = json.dumps(values)
    write_atomic(path, save(tensors, metadata={"format": FORMAT, "card": text, "sha256": _digest(text, tensors)}))


def _digest(card: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the card's text and of every tensor in the order of names: a line of JSON about it, its bytes."""
    total = hashlib.sha256(f"{card}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        total.update(f"{json.dumps(header)}\n".encode())
        total.update(_bytes(tensor))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().data


def _damaged(path: Path, error: Exception | str) -> CheckpointError:
    return CheckpointError(f"cannot be read ({error})", str(path), "the file is damaged; take another")


def _require_header(path: Path) -> None:
    """Raise where a file says that its header is longer than any can be: the library would parse 100 MB of it."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise _damaged(path, error) from error
    if length > _HEADER:
        raise _damaged(path, f"its header would have {length:,} bytes, more than {_HEADER:,}")


def is_exported(word: str) -> bool:
    """Whether a word names a file of `selkern export`."""
    return Path(word).suffix in EXPORTED


def require_not_exported(word: str) -> None:
    """Raise UsageError for a file of `selkern export`, which can be used, and not trained or changed."""
    if is_exported(word):
        raise UsageError("an exported file", printable(word), "give the run or the weights that it was made of")


def _metadata(path: Path) -> dict[str, str]:
    require_not_exported(str(path))
    if not path.is_file():
        raise CheckpointError("no such weights file", str(path), "check the path")
    _require_header(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError) as error:  # the last: larger than memory can map
        raise _damaged(path, str(error).splitlines()[0]) from error


def describes_itself(path: Path) -> bool:
    """Whether a safetensors file is one of ours. Raises CheckpointError for no such file, or a damaged one."""
    return _metadata(path).get("format") == FORMAT


def read_card(path: Path) -> Card:
    """The card of a weights file, by itself: whether it is as it was written only `read_tensors` can check.

    Raises:
        CheckpointError: no such file, not a safetensors file, or one without our metadata.
    """
    metadata = _metadata(path)
    if metadata.get("format") != FORMAT:
        fix = "give a weights/*.safetensors of a run, or the model's name beside timm's weights of an SK network"
        raise CheckpointError("not a selkern weights file", str(path), fix)
    try:
        values = json.loads(metadata["card"])
        return Card(**{**values, "classes": tuple(values["classes"])})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file; one of ours is checked against its SHA-256, tensors and card.

    Raises:
        CheckpointError: a file that cannot be read, or one of ours that differs from what was written.
    """
    metadata = _metadata(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if metadata.get("format") == FORMAT and metadata.get("sha256") != _digest(metadata.get("card", ""), tensors):
        raise CheckpointError("differs from what was written", str(path), "the file is damaged; take another")
    return tensors


def checksum(state: Mapping[str, Tensor]) -> int:
    """A number that shows whether tensors are bit for bit what they were, on whichever device they lie."""
    total = 0
    for tensor in state.values():
        if not tensor.is_meta:
            total = zlib.crc32(_bytes(tensor), total)
    return total


def load_into(model: nn.Module, tensors: dict[str, Tensor], where: str, *, keep_head: bool = True) -> None:
    """Load tensors into a model of the same architecture.

    Args:
        where: the file they are of, for the error.
        keep_head: False leaves the classifier (`fc.*`) as it was made; a model without one never needs it.

    Raises:
        CheckpointError: names or shapes that do not fit.
    """
    own = model.state_dict()
    if not keep_head or "fc.weight" not in own:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    expected = {name: own[name] for name in own if keep_head or not name.startswith("fc.")}
    require_fit(tensors, expected, where, "the file is of another architecture")
    model.load_state_dict(tensors, strict=False)


def require_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str, fix: str) -> None:
    """Raise CheckpointError, with `where` and `fix`, unless both have the same names and shapes."""
    for name in sorted(expected.keys() ^ tensors.keys()):
        what = "is missing" if name in expected else "belongs to no layer"
        raise CheckpointError(f"tensor {name} {what}", where, fix)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, the model {tuple(expected[name].shape)}"
            raise CheckpointError(f"tensor {name} has shape {shapes}", where, fix)
