"""An exported file held against the network that it is of, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from selkern.data.preprocess import Preprocess
from selkern.errors import NumericsError, SelkernError, UsageError, kind_and_line
from selkern.layers.parts import evaluating
from selkern.runtimes.files import RUNNABLE, SUFFIXES, is_compiled, need
from selkern.runtimes.graph import Graph
from selkern.runtimes.network import ExportedNetwork, as_entering
from selkern.runtimes.resize import resized

TOLERANCE = 1e-4  # of the largest logit: sums of float32 in another order
_RESIZED = 0.02  # where the file resizes: single pixels are rounded to the next grey level
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An exported file beside the PyTorch network, on the same images.

    Attributes:
        images: how many.
        difference: largest difference of the logits, as a share of the largest logit.
        agreement: share of images with the same likeliest class.
        top1: of the PyTorch network; None where the images have no labels.
        exported_top1: of the file.
    """

    images: int
    difference: float
    agreement: float
    top1: float | None = None
    exported_top1: float | None = None

    def figures(self) -> dict[str, float]:
        """For a card: what was measured, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The images that a file is compared on.

    Attributes:
        entering: as the file takes them.
        logits: what the PyTorch network gives.
        labels: their classes, or the network's own answers.
        labelled: whether they are classes.
    """

    entering: Tensor
    logits: Tensor
    labels: Tensor
    labelled: bool

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, labels: Tensor | None, inside: Preprocess | None) -> Trial:
        """With what the model gives; of images that are rounded, for the rounded ones."""
        entering = as_entering(images, inside)
        logits = logits_of(model, images if inside is None else inside.normalise(resized(entering, inside)))
        if labels is not None:
            if labels.shape != (len(images),):
                raise UsageError(f"{len(labels)} labels of {len(images)} images", "labels", "give one for each image")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
                what = f"labels from {int(labels.min())} to {int(labels.max())} of {logits.shape[1]} classes"
                raise UsageError(what, "labels", "number the classes from 0")
        given = logits.argmax(1) if labels is None else labels
        return cls(entering=entering, logits=logits, labels=given, labelled=labels is not None)

    @property
    def top1(self) -> float:
        """Of the PyTorch network; 1 where its answers are the labels."""
        return (self.logits.argmax(1) == self.labels).double().mean().item()

    def compare(
        self, path: Path, staged: Path, tolerance: float, max_drop: float = 1.0, min_agreement: float = 0.0
    ) -> Comparison:
        """Hold a file against the network.

        Raises:
            NumericsError: logits that differ by more than the tolerance, top-1 lower by more than `max_drop`, or fewer
                images of the same likeliest class.
        """
        got = run_file(staged, self.entering)
        if not got.isfinite().all():
            raise NumericsError("the exported network gives no finite numbers", str(path), "nothing was written")
        difference, agreement = closeness(self.logits, got)
        if not difference <= tolerance:
            what = f"the exported network differs by {difference:.1e} of the largest logit, more than {tolerance:.0e}"
            raise NumericsError(what, str(path), "nothing was written; report it")
        exported = (got.argmax(1) == self.labels).double().mean().item()
        if self.top1 - exported > max_drop:
            what = f"int8 has a top-1 of {exported:.2%}, {self.top1:.2%} without, and {max_drop:.2%} less is allowed"
            raise NumericsError(what, str(path), "nothing was written; allow more, or export without int8")
        if agreement < min_agreement:
            what = f"int8 has the same likeliest class for {agreement:.2%} of the images, less than {min_agreement:.2%}"
            raise NumericsError(what, str(path), "nothing was written; ask for less, or export without int8")
        both = {"top1": self.top1, "exported_top1": exported} if self.labelled else {}
        return Comparison(images=len(got), difference=difference, agreement=agreement, **both)


def require_any_size(path: Path, staged: Path, model: nn.Module, x: Tensor, tolerance: float) -> None:
    """Raise UsageError for a model of images of one size, NumericsError for a file that differs for another size."""
    larger = functional.interpolate(x[:2], size=(x.shape[2] + 32, x.shape[3] + 64), mode="bilinear")
    try:
        want = logits_of(model, larger)
    except UsageError as error:
        raise UsageError(error.what, error.where, "leave dynamic_size out if it takes images of one size") from error
    difference, _ = closeness(want, run_file(staged, larger))
    if not difference <= tolerance:
        what = f"for images of {tuple(larger.shape)} it differs by {difference:.1e} of the largest logit"
        raise NumericsError(what, str(path), "nothing was written; leave dynamic_size out")


def require_resized(path: Path, staged: Path, graph: Graph) -> None:
    """Raise NumericsError unless a file resizes images that are not of the network's size as its graph does."""
    assert graph.preprocess is not None
    size = graph.preprocess.size
    for height, width in ((2 * size, 3 * size + 1), (size, size // 2 + 1)):
        coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        levels = 255 * functional.interpolate(coarse, size=(height, width), mode="bilinear")
        x = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        difference, _ = closeness(graph(x)[0].detach(), run_file(staged, x))
        if not difference <= _RESIZED:
            what = f"images of {width} x {height} px resized within differ by {difference:.1e} of the largest logit"
            raise NumericsError(what, str(path), "nothing was written; report it")


def closeness(want: Tensor, got: Tensor) -> tuple[float, float]:
    """Largest difference of logits (N, K) as a share of the largest, and the share of images of the same class."""
    difference = (got - want).abs().max() / want.abs().max().clamp(min=1e-12)
    return difference.item(), (got.argmax(1) == want.argmax(1)).double().mean().item()


@torch.inference_mode()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of the PyTorch network in eval mode, in batches. Raises UsageError for a model that gives none."""
    with evaluating(model):
        try:
            parts = [model(part) for part in torch.split(x, _BATCH)]
        except SelkernError:
            raise
        except Exception as error:
            reason = kind_and_line(error)
            raise UsageError(
                f"does not run on {tuple(x.shape)} ({reason[:200]})", type(model).__name__, "give images it takes"
            ) from error
    if not all(isinstance(part, Tensor) and part.ndim == 2 for part in parts):
        kind = type(parts[0]).__name__
        raise UsageError(f"the model gives a {kind}, not logits (N, K)", type(model).__name__, "export a classifier")
    return torch.cat(parts).float().cpu()


@torch.inference_mode()
def run_file(path: Path, x: Tensor) -> Tensor:
    """Logits of a file that was just written, as its runtime gives them."""
    if path.suffix in RUNNABLE:
        run: Callable[[Tensor], Sequence[Tensor]] = ExportedNetwork(path).outputs
    elif path.suffix == SUFFIXES["executorch"]:
        method = need("executorch.runtime", path.name).Runtime.get().load_program(path).load_method("forward")
        return torch.cat([method.execute([part])[0].clone() for part in torch.split(x, 1)])
    elif is_compiled(path):
        run = torch._inductor.aoti_load_package(str(path))
    else:
        run = torch.export.load(path).module()
    return torch.cat([run(part)[0] for part in torch.split(x, _BATCH)])
