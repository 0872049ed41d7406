"""Cases of run folders that are not as they should be: their options, their states, the files beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from guarantees.cases import CHECKPOINT, DATA, OK, RESOURCE, USAGE, Case, Place, folder_instead, remove

ANY = (USAGE, DATA, CHECKPOINT, RESOURCE)


def _yaml(file: Path, **changes: Any) -> None:
    values = yaml.safe_load(file.read_text())
    values["training"] |= changes.pop("training", {})
    file.write_text(yaml.safe_dump(values | changes))


# What is done to a run's config.yaml.
CONFIGS: dict[str, Callable[[Path], Any]] = {
    "missing": lambda file: file.unlink(),
    "a folder": folder_instead,
    "empty": lambda file: file.write_text(""),
    "a text": lambda file: file.write_text("hello"),
    "a list": lambda file: file.write_text("[1, 2]"),
    "no YAML": lambda file: file.write_text("a: [1"),
    "tabs": lambda file: file.write_text("data:\n\t- x"),
    "not UTF-8": lambda file: file.write_bytes(b"data: \xff\xfe"),
    "zeros": lambda file: file.write_bytes(bytes(999)),
    "huge": lambda file: file.write_text(file.read_text() + "# more\n" * 400_000),
    "very deep": lambda file: file.write_text("data: " + "[" * 20_000),
    "a tag": lambda file: file.write_text("data: !!python/object/apply:os.getcwd []"),
    "a long number": lambda file: file.write_text("seed: " + "9" * 9999),
    "no date": lambda file: file.write_text("name: 2001-99-99"),
    "two documents": lambda file: file.write_text("data: digits\n---\ndata: digits\n"),
    "an unknown key": lambda file: _yaml(file, epohcs=3),
    "a number as key": lambda file: _yaml(file, training={3: 4}),
    "epochs in words": lambda file: _yaml(file, training={"epochs": "two"}),
    "half epochs": lambda file: _yaml(file, training={"epochs": 1.5}),
    "epochs that are true": lambda file: _yaml(file, training={"epochs": True}),
    "no epochs": lambda file: _yaml(file, training={"epochs": None}),
    "a list as learning rate": lambda file: _yaml(file, training={"lr": [1]}),
    "text as learning rate": lambda file: _yaml(file, training={"lr": "1e-3"}),
    "learning rate not a number": lambda file: _yaml(file, training={"lr": float("nan")}),
    "one mean": lambda file: _yaml(file, training={"mean": [1]}),
    "a mean in words": lambda file: _yaml(file, training={"mean": ["a", "b", "c"]}),
    "a mean out of range": lambda file: _yaml(file, training={"mean": [2, 2, 2]}),
    "a number as mean": lambda file: _yaml(file, training={"mean": 0.5}),
    "text as milestones": lambda file: _yaml(file, training={"milestones": "1, 2"}),
    "a number as augmentation": lambda file: _yaml(file, training={"augment": 3}),
    "one crop scale": lambda file: _yaml(file, training={"augment": {"crop_scale": [0.5]}}),
    "an unknown optimizer": lambda file: _yaml(file, training={"optimizer": "adam"}),
    "an optimizer that is a list": lambda file: _yaml(file, training={"optimizer": ["sgd"]}),
    "data that is a mapping": lambda file: _yaml(file, data={"a": 1}),
    "data that is a number": lambda file: _yaml(file, data=3),
    "no data": lambda file: _yaml(file, data=None),
    "training that is a list": lambda file: file.write_text("training: [1]"),
    "a report that is text": lambda file: _yaml(file, report="yes"),
    "a huge seed": lambda file: _yaml(file, seed=2**70),
    "workers in words": lambda file: _yaml(file, workers="two"),
    "a name that is a way out": lambda file: _yaml(file, name="../../x"),
}
# Values of the right type that no run can have: named by their flag, as on the command line.
RANGES = {
    "learning rate not a number": "--lr",
    "a mean out of range": "--mean",
    "a huge seed": "--seed",
    "a name that is a way out": "--name",
    "an unknown optimizer": "--optimizer",
}


def runs(place: Place) -> Iterator[Case]:
    """Run folders: what is no run, and runs whose config.yaml is not as it was written."""
    folder = place.fresh()
    (folder / "file").write_text("x")
    names = {"nothing": folder / "no", "a folder": folder, "a file": folder / "file", "the latest": Path("latest")}
    for name, given in {**names, "a long name": Path("x" * 5000), "below a file": folder / "file" / "x"}.items():
        for words in (
            ("evaluate", str(given)),
            ("train", "--resume", str(given)),
            ("predict", str(given), str(place.good)),
        ):
            yield Case(f"{name}: {words[0]}", words, ANY, (str(given)[:50],))
    (place.root / "runs").mkdir()
    for name, text in {"garbage": b"\xff\xfe", "empty": b"", "somewhere": b"/nothing\n", "zeros": bytes(99)}.items():
        (place.root / "runs" / "latest.txt").write_bytes(text)
        yield Case(f"latest.txt: {name}", ("train", "--resume"), ANY)
        yield Case(f"latest.txt: {name}, evaluate", ("evaluate", "latest"), ANY)
    shutil.rmtree(place.root / "runs")
    for name, change in CONFIGS.items():
        run = _copy(place)
        change(run / "config.yaml")
        shows = (RANGES[name] if name in RANGES else str(run),)
        yield Case(f"config.yaml {name}, resumed", ("train", "--resume", str(run)), (USAGE, CHECKPOINT), shows)
        yield Case(f"config.yaml {name}, evaluated", ("evaluate", str(run)), (USAGE, CHECKPOINT), shows)


def _copy(place: Place) -> Path:
    """The sound run in the output folder, where it may be changed, with an epoch more to do."""
    place.fresh()
    run = Path(shutil.copytree(place.run, place.output / "run"))
    _yaml(run / "config.yaml", training={"epochs": 2})
    return run


def _file_as_state(run: Path) -> None:
    remove([run / "state"])
    (run / "state").write_text("")


def _state(run: Path, name: str) -> Path:
    return next(run.glob(f"state/step-*/{name}"))


# What is done to a run with one epoch to go; the exit codes that are right when it is resumed.
STATES: dict[str, tuple[Callable[[Path], Any], tuple[int, ...]]] = {
    "as it should be": (lambda _run: None, (OK,)),
    "no state": (lambda run: shutil.rmtree(run / "state"), (OK,)),
    "an empty state": (lambda run: remove(run.glob("state/step-*")), (OK, CHECKPOINT)),
    "no manifest": (lambda run: _state(run, "manifest.json").unlink(), (CHECKPOINT,)),
    "an empty manifest": (lambda run: _state(run, "manifest.json").write_text(""), (CHECKPOINT,)),
    "a manifest that is a list": (lambda run: _state(run, "manifest.json").write_text("[]"), (CHECKPOINT,)),
    "no model": (lambda run: _state(run, "model.safetensors").unlink(), (CHECKPOINT,)),
    "a cut model": (lambda run: os.truncate(_state(run, "model.safetensors"), 99), (CHECKPOINT,)),
    "no optimizer": (lambda run: _state(run, "optimizer.safetensors").unlink(), (CHECKPOINT,)),
    "garbled progress": (lambda run: _state(run, "progress.json").write_text("{"), (CHECKPOINT,)),
    "no LAST": (lambda run: (run / "state" / "LAST").unlink(), (OK,)),
    "garbled LAST": (lambda run: (run / "state" / "LAST").write_bytes(b"\xff\xfe"), (OK,)),
    "no metrics": (lambda run: (run / "metrics.csv").unlink(), (OK,)),
    "garbled metrics": (lambda run: (run / "metrics.csv").write_bytes(b"\xff\xfe\0a,b\n1"), (OK,)),
    "no classes": (lambda run: (run / "classes.json").unlink(), (OK,)),
    "garbled classes": (lambda run: (run / "classes.json").write_text("{"), (OK,)),
    "no weights": (lambda run: shutil.rmtree(run / "weights"), (OK, RESOURCE)),
    "no log": (lambda run: (run / "log.txt").unlink(), (OK,)),
    "no split": (lambda run: (run / "split.csv").unlink(), (OK,)),
    "garbled split": (lambda run: (run / "split.csv").write_bytes(b"\xff\xfe\0a,b\n1"), (OK, DATA)),
    "garbled bad files": (lambda run: (run / "bad_files.csv").write_bytes(b"a,b\n\xff\xfe"), (*ANY, OK)),
    "bad files of other columns": (lambda run: (run / "bad_files.csv").write_text("a,b\n1,2\n"), (*ANY, OK)),
    "bad files of zeros": (lambda run: (run / "bad_files.csv").write_bytes(bytes(99)), (*ANY, OK)),
    "a folder as log": (lambda run: folder_instead(run / "log.txt"), (RESOURCE,)),
    "a file as state": (_file_as_state, (OK, *ANY)),
    "data that is gone": (lambda run: _yaml(run / "config.yaml", data="/nothing/here"), (OK,)),  # inputs.json knows it
    "weights that are gone": (lambda run: _yaml(run / "config.yaml", weights="/nothing.safetensors"), (CHECKPOINT,)),
    "another model": (lambda run: _yaml(run / "config.yaml", model="plain_none"), (USAGE,)),
    "an order log of words": (lambda run: (run / "order.rank0.csv").write_text("a,b,c\n"), (*ANY, OK)),
}
# What analyze says of a run whose side files are not as they were: the report needs the metrics.
ANALYZED = {
    "no metrics": (*ANY, OK),
    "garbled metrics": (*ANY, OK),
    "metrics of other columns": (*ANY, OK),
    "metrics of words": (*ANY, OK),
    "no classes": (OK,),
}


def states(place: Place) -> Iterator[Case]:
    """Run folders with files that are missing or damaged."""
    for name, (change, codes) in STATES.items():
        run = _copy(place)
        change(run)
        yield Case(f"{name}, resumed", ("train", "--resume", str(run), "--device", "cpu"), codes)
    run = _copy(place)
    _yaml(run / "config.yaml", training={"epochs": 1})
    yield Case("a finished run", ("train", "--resume", str(run)), (CHECKPOINT,), (str(run), "finished"))
    yield Case("more epochs without a word", ("train", "--resume", str(run), "--epochs", "3"), (USAGE,), ("--extend",))
    yield Case(
        "no epochs", ("train", "--resume", str(run), "--epochs", "0", "--extend", "rescale"), (USAGE,), ("epochs",)
    )
    yield Case("workers -1", ("train", "--resume", str(run), "--workers", "-1"), (USAGE, CHECKPOINT))
    for name, codes in ANALYZED.items():
        run = _copy(place)
        if name in STATES:
            STATES[name][0](run)
        else:
            header, row = (run / "metrics.csv").read_text().splitlines()
            row = ",".join("x" * row.count(",")) if name.endswith("words") else row
            header = "a,b" if name.endswith("columns") else header
            (run / "metrics.csv").write_text(f"{header}\n{row}\n")
        yield Case(f"{name}, analyzed", ("analyze", str(run), "--device", "cpu"), codes)
    run = _copy(place)
    (run / "weights" / "best.safetensors").unlink()
    yield Case("no best weights", ("evaluate", str(run)), (CHECKPOINT,), (str(run),))
    run = _copy(place)
    pointer = json.dumps({"x": 1})
    (run / "split.csv").write_text(pointer)
    yield Case("a split that is JSON, evaluated", ("evaluate", str(run), "--device", "cpu"), (OK, DATA))
