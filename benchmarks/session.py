"""A running benchmark: its settings, its results so far, and a comparison of variants in turn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from benchmarks.goals import SIDE, SK50
from benchmarks.results import Results, Row
from selkern.errors import NumericsError, SelkernError
from selkern.measure.timing import Job, in_turn, quickest

# What a peer that does not fit this machine raises; what is left over is a mistake of ours and is to be seen.
FAILURES = (SelkernError, ImportError, AttributeError, RuntimeError, ValueError, TypeError, OSError, MemoryError)
TOLERANCE = 1e-3  # of the largest value: float32 sums in another order


@dataclass
class Session:
    """Settings of all workloads, and their results.

    Attributes:
        say: called with what is measured next.
        budget: seconds for the rounds of one comparison.
        rounds: exactly so many rounds; None asks the budget.
        batches: of the workload `infer`.
        train_batch: of the workload `train`.
        compile: also measure what torch.compile makes, which takes minutes.
        trial: small shapes, to try the harness itself.
    """

    say: Callable[[str], None] = lambda _: None
    budget: float = 10.0
    rounds: int | None = None
    batches: tuple[int, ...] = (1, 8, 32)
    train_batch: int = 8
    compile: bool = False
    trial: bool = False
    results: Results = field(default_factory=Results)

    @property
    def network(self) -> str:
        """SKNet-50, which timm has too; in a trial a small one."""
        return "skresnet18" if self.trial else SK50

    @property
    def side(self) -> int:
        """Of the network's images, px."""
        return 32 if self.trial else SIDE

    @property
    def classes(self) -> int:
        """Outputs of the network."""
        return 10 if self.trial else 1000

    def compare(
        self,
        workload: str,
        case: str,
        quantity: str,
        *,
        against: str = "",
        expected: Tensor | None = None,
        per: int = 1,
    ) -> Comparison:
        """A new comparison, to which variants are offered."""
        self.say(f"{workload}: {case}, {quantity}")
        return Comparison(self, workload, case, quantity, against, expected, per)


class Comparison:
    """Variants of one thing, timed in turn.

    Args:
        session: settings, and where the rows go.
        workload, case, quantity: names of the rows.
        against: the variant that the others are compared with.
        expected: what every variant must give; None checks nothing.
        per: images that a job works on: times are per image where it is more than one.
    """

    def __init__(
        self,
        session: Session,
        workload: str,
        case: str,
        quantity: str,
        against: str = "",
        expected: Tensor | None = None,
        per: int = 1,
    ) -> None:
        self.session, self.workload, self.case, self.quantity = session, workload, case, quantity
        self.against, self.expected, self.per = against, expected, per
        self.jobs: dict[str, Job] = {}
        self.layouts: dict[str, str] = {}

    def offer(
        self, variant: str, make: Callable[[], Mapping[str, Job]], *, tolerance: float | None = TOLERANCE
    ) -> None:
        """Take a variant in, in the fastest of its layouts; one that cannot be made or errs is named as missing.

        Args:
            variant: its name.
            make: gives a job for every layout it can run in.
            tolerance: greatest difference of its result from the expected one; None does not look.
        """
        try:
            jobs = make()
            for job in jobs.values():
                result = job()
                if self.expected is not None and tolerance is not None:
                    _check(result, self.expected, tolerance)
            self.layouts[variant] = quickest(jobs, warm=True) if len(jobs) > 1 else next(iter(jobs))
        except FAILURES as error:
            self.session.results.lacks(self.workload, variant, error)
            return
        self.jobs[variant] = jobs[self.layouts[variant]]

    def run(self) -> None:
        """Time all variants and add their rows."""
        if not self.session.trial:
            gc.collect()  # networks of the comparison before this one
        seconds = in_turn(self.jobs, budget=self.session.budget, rounds=self.session.rounds, warm_up=1)
        for variant, taken in seconds.items():
            row = Row(
                workload=self.workload,
                case=self.case,
                quantity=self.quantity,
                variant=variant,
                unit="ms/image" if self.per > 1 else "ms",
                samples=tuple(value * 1e3 / self.per for value in taken),
                layout=self.layouts[variant],
                against=self.against if variant != self.against else "",
            )
            self.session.results.rows.append(row)


def _check(result: object, expected: Tensor, tolerance: float) -> None:
    """Raise NumericsError where a variant computes something else."""
    assert isinstance(result, Tensor)
    if result.shape != expected.shape:
        raise NumericsError(f"gives {tuple(result.shape)} instead of {tuple(expected.shape)}", "bench", "not compared")
    error = (result.float() - expected.float()).abs().max().item() / (expected.abs().max().item() or 1.0)
    if not error <= tolerance:
        raise NumericsError(f"differs by {error:.1e} of the largest value", "bench", "not compared")


def step(model: nn.Module, x: Tensor) -> object:
    """Forward and backward of a layer in training, the gradient of its input included; gives the loss."""
    for parameter in model.parameters():
        parameter.grad = None
    leaf = x.detach().requires_grad_()
    loss = model(leaf).square().mean()
    loss.backward()
    return loss.detach()
