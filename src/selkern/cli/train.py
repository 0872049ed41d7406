"""`selkern train`: train a network and report on it, or continue a run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selkern.cli.greet import greet, is_main
from selkern.cli.parse import parse, parse_known
from selkern.errors import SelkernError, UsageError, printable
from selkern.progress import Progress, say
from selkern.tuning import check_threads, tune

if TYPE_CHECKING:
    from selkern.train.defaults import Defaults
    from selkern.train.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Continue a run in its own folder, with the options it was started with."""

    resume: str
    """The run's folder or name, or latest."""
    data: str | None = None
    """Where the run's data lie now, if they were moved; other data are refused."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads to compute with, in place of those the run was started with; sums are then rounded otherwise."""
    workers: int | None = None
    """Processes that load images in the background; the result does not depend on it."""
    timeout_minutes: float = 10.0
    """Of several processes: minutes to wait for another one before the run ends."""
    epochs: int | None = None
    """Another number of epochs than the run was started with."""
    model: str = ""
    """Your code that makes the run's network, where that is FILE.py:NAME or module:NAME; it is run only if named."""
    extend: Literal["keep", "rescale"] | None = None
    """With another --epochs: keep the planned learning rate of every epoch, or stretch the plan over all of them."""

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if not self.resume:
            raise UsageError(
                "no run is named", "--resume", "give a run's folder or name, or leave it out for the latest"
            )


def main(argv: list[str]) -> int:
    """`selkern train`, and with `--resume` its continuation."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--resume=") else [word])]
    if "--resume" in argv:
        at = argv.index("--resume") + 1
        if at == len(argv) or argv[at].startswith("-"):
            argv = [*argv[:at], "latest", *argv[at:]]
        options = parse(ResumeOptions, argv, "train --resume")
        greet(f"resuming {options.resume}")
        with Progress("starting", quiet=not is_main()):
            from selkern.train import run as job

            tune(training=True, threads=options.threads)
        device = options.device
        run = job.resume(
            options.resume,
            options.device,
            options.workers,
            data=options.data,
            threads=options.threads,
            epochs=options.epochs,
            extend=options.extend,
            model=options.model,
            patience=options.timeout_minutes,
        )
        code = options.model
    else:
        asked, defaults = _train_options(argv)
        greet(f"{asked.model} on {asked.data}, recipe {asked.recipe}")
        with Progress("starting", quiet=not is_main()):
            from selkern.train import run as job

            tune(training=True, threads=asked.threads)
        device = asked.device
        run = job.train(asked, defaults)
        code = asked.model
    if run is not None:  # rank 0
        from selkern.report.analyze import report_run

        report_run(run, device, code)
        print(_next_commands(run.path, code))
    return 0


def _train_options(argv: list[str]) -> tuple[TrainOptions, Defaults]:
    """Options from the flags, on top of defaults that follow from some of them, and those defaults."""
    from selkern.train.defaults import Asked, choose_defaults
    from selkern.train.options import TrainOptions

    helping = not {"-h", "--help"}.isdisjoint(argv)
    try:
        asked = parse_known(Asked, argv, "train")
        with Progress(f"looking at {printable(asked.data)}", quiet=helping or not is_main()):
            defaults = choose_defaults(asked, fetch=not helping)
    except SelkernError as error:
        if not helping:
            raise
        defaults = choose_defaults(Asked())  # help is given whatever else is wrong
        say(f"note: the defaults below are those of the digits, since the command as it stands fails: {error}")
    return parse(TrainOptions, argv, "train", defaults.options), defaults


def _next_commands(run: Path, model: str) -> str:
    from selkern.convert.subject import is_own_code

    named = f" --model {shlex.quote(model)}" if is_own_code(model) else ""
    report = run / "report.html"
    lines = [f"report: {report}"] if report.is_file() else []
    lines += ["next:"]
    lines += [
        f"  selkern {words.format(shlex.quote(str(run)))}{named}"
        for words in ("predict {} IMAGE...", "evaluate {}", "analyze {}")
    ]
    return "\n".join(lines)
