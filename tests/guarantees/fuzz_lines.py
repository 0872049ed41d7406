"""Random command lines and random config.yaml files, out of the real options: mostly wrong, none of them ever trains.

Whatever a line asks for, it ends early: data are not there, and folders to write into are files.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from selkern.cli import COMMANDS, analyze, bench, check, convert, data, doctor, evaluate, models, predict, train
from selkern.train.options import TrainOptions

OPTIONS = {
    "train": TrainOptions,
    "train --resume": train.ResumeOptions,
    "evaluate": evaluate.EvaluateOptions,
    "predict": predict.PredictOptions,
    "analyze": analyze.AnalyzeOptions,
    "convert": convert.ConvertOptions,
    "check": check.CheckOptions,
    "models": models.ModelsOptions,
    "data": data.DataCheckOptions,
    "bench": bench.BenchOptions,
    "doctor": doctor.DoctorOptions,
}
# Commands that work for minutes where a line is right: theirs get a flag that there is not.
LONG = ("bench", "doctor")
NOTHING = "/nothing-of-this-name"
VALUES = (
    "0", "1", "2", "-1", "-0", "2.5", "1e9", "1e-400", "9" * 40, "nan", "inf", "-inf", "two", "", " ", "=", "--", "-",
    "a b", "ü", "🐈", "\udcff", "\x1b[31m", "a\nb", "'", '"', "$HOME", "*", "x" * 9000, "[1]", "{}", "None", "true",
    "0x10", "1_000", "../..", "/", "/dev/null", "null", "auto", "cpu", "cuda", "skip", "error", "latest", "hf-hub:",
    "hf-hub:a", "timm:x", "a | b", "%s", "{0}", "sgd", "cosine", "lean", "resized", "sk_tiny", "sknet50",
    "imagenet-paper", "64,8,8", "--help",
)  # fmt: skip
# Flags whose values are chosen with care: nothing is to be trained, and nothing written.
CAREFUL = ("--data", "--output", "--resume")


def flags_of(cls: type) -> dict[str, Any]:
    """Flags of an options dataclass and of those within it, with their types."""
    hints, result = get_type_hints(cls), dict[str, Any]()
    for field in fields(cls):
        if is_dataclass(hint := hints[field.name]):
            result |= flags_of(hint)  # type: ignore[arg-type]
        else:
            result["--" + field.name.replace("_", "-")] = hint
    return result


class Lines:
    """A source of random lines.

    Args:
        seed: decides them all.
        place: a folder with `blocked` (a file), `run` (a folder to write into), `w.safetensors` and `a.png`.
    """

    def __init__(self, seed: int, place: Path) -> None:
        self.random, self.place = random.Random(seed), place
        self.flags = {command: list(flags_of(cls)) for command, cls in OPTIONS.items()}
        self.every = sorted({flag for flags in self.flags.values() for flag in flags})

    def line(self) -> list[str]:
        """The words of one command line."""
        kind = self.random.random()
        if kind < 0.04:
            return self._junk()
        if kind < 0.16:
            self.write_config(self.place / "run" / "config.yaml")
            return self.random.choice(
                [["train", "--resume", str(self.place / "run")], ["evaluate", str(self.place / "run")]]
            )
        command = self.random.choice(list(OPTIONS))
        words = self._positional(command)
        for _ in range(self.random.randrange(5)):
            words += self._flag(command)
        if self.random.random() < 0.2:
            self.random.shuffle(words)
        if self.random.random() < 0.1:
            words.insert(self.random.randrange(len(words) + 1), self.random.choice(VALUES))
        # What comes last counts: the data are not there, and nothing can be written.
        if command == "train":
            words = [*words, "--data", NOTHING, "--output", str(self.place / "blocked")]
        elif command in LONG:
            words.append("--none-such")
        elif command == "data":
            words = [word for word in words if word != "digits"]
        first = self._misspelt(command) if self.random.random() < 0.05 else command
        return [*first.split(" "), *words]

    def _junk(self) -> list[str]:
        letters = string.printable + "ü🐈\udcfe\x00"[:-1]
        word = "".join(self.random.choice(letters) for _ in range(self.random.randrange(40)))
        words = [word, *self.random.choices(VALUES, k=self.random.randrange(6))]
        return words if words[0] not in COMMANDS else words[1:]

    def _positional(self, command: str) -> list[str]:
        given = [str(self.place / name) for name in ("w.safetensors", "a.png", "blocked", "none", "run")] + ["none", ""]
        counts = {"evaluate": 1, "predict": 2, "analyze": 1, "convert": 2, "check": 1, "models": 1, "data": 1}
        # The table of all models takes seconds: a pattern is always given.
        wanted = counts.get(command, 0) + self.random.choice((-1 if command != "models" else 0, 0, 0, 0, 0, 1))
        words = [self.random.choice(given) for _ in range(wanted)]
        if command == "train --resume":
            words = [self.random.choice([NOTHING, str(self.place), "", "latest", *words]), *words]
        return words

    def _flag(self, command: str) -> list[str]:
        flag = self.random.choice(self.flags[command] if self.random.random() < 0.85 else self.every)
        if self.random.random() < 0.15:
            flag = self._misspelt(flag)
        if flag in CAREFUL or flag.startswith(("--data", "--out", "--resume")):
            value = self.random.choice([NOTHING, str(self.place / "blocked"), str(self.place / "blocked" / "x")])
            return [flag, value] if self.random.random() < 0.5 else [f"{flag}={value}"]
        values = self.random.choices(VALUES, k=self.random.choice((0, 1, 1, 1, 1, 2, 3)))
        if values and self.random.random() < 0.3:
            return [f"{flag}={values[0]}", *values[1:]]
        return [flag, *values]

    def _misspelt(self, word: str) -> str:
        at = self.random.randrange(len(word))
        letter = self.random.choice(string.ascii_lowercase + "-_= .")
        change: Callable[[], str] = self.random.choice(
            (
                lambda: word[:at] + word[at + 1 :],
                lambda: word[:at] + letter + word[at:],
                lambda: word[:at] + letter + word[at + 1 :],
                lambda: word.upper(),
                lambda: word.lstrip("-"),
                lambda: word[: at + 1],
            )
        )
        return change()

    def write_config(self, file: Path) -> None:
        """A config.yaml: options with some values of wrong types, or any YAML, or no YAML at all."""
        kind = self.random.random()
        if kind < 0.1:
            file.write_bytes(self.random.randbytes(self.random.randrange(300)))
        elif kind < 0.25:
            made = self._value(4)
            if isinstance(made, dict):  # without data, a run would go on with the bundled digits
                made["data"] = made.get("data") if isinstance(made.get("data"), (list, dict)) else NOTHING
            file.write_text(yaml.safe_dump(made), encoding="utf-8")
        else:
            values = yaml.safe_load(TrainOptions(data=NOTHING).to_yaml())
            for _ in range(self.random.randrange(1, 4)):
                part = self.random.choice([values, values["training"], values["training"]["augment"]])
                if isinstance(part, dict) and part:
                    part[self.random.choice([*part, "none"])] = self._value(2)
                if not isinstance(values["training"], dict) or not isinstance(values["training"].get("augment"), dict):
                    break
            values["data"] = NOTHING if isinstance(values.get("data"), str) else values.get("data")
            text = yaml.safe_dump(values, sort_keys=False)
            if kind < 0.35:
                text = text.replace(
                    ":", self.random.choice((" ", "::", ": &a", ": *a", ": !!int", ": !x", ": |", "\t:")), 1
                )
            file.write_text(text, encoding="utf-8")

    def _value(self, depth: int) -> Any:
        simple: tuple[Any, ...] = (
            None,
            True,
            False,
            0,
            -1,
            3,
            10**30,
            0.5,
            float("nan"),
            float("inf"),
            "",
            "two",
            "1e-3",
            "~",
            "ü",
            [],
            {},
        )
        kind = self.random.random()
        if not depth or kind < 0.6:
            return self.random.choice(simple)
        if kind < 0.8:
            return [self._value(depth - 1) for _ in range(self.random.randrange(5))]
        names = ("data", "training", "lr", "x", 3, None, True)
        return {self.random.choice(names): self._value(depth - 1) for _ in range(self.random.randrange(4))}
