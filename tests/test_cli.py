"""The command line: every mistake is one line with its exit code, every answer reads as text and as JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import ENVIRONMENT, PROGRAM, draw, make_folder, make_options, signal_at, train

from selkern import __version__, cli
from selkern.errors import CheckpointError, SelkernError
from selkern.models.weights import read_card, save_weights
from selkern.train.options import read_options
from selkern.train.run_folder import RunFolder

QUICK = "--model sk_tiny --epochs 1 --batch-size 14 --image-size 16 --no-report --device cpu".split()  # noqa: SIM905


pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    torch.set_num_threads(1)
    return train(
        make_options(data, tmp_path_factory.mktemp("runs"), model="sk_tiny", epochs=2, batch_size=14, name="run")
    )


class Said:
    """What a command printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.lines = [line for line in err.splitlines() if line]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> Said:
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    return Said(code, *capsys.readouterr())


def refused(said: Said, code: int, *parts: str) -> None:
    """One line that starts with `error: `, the last one, holds all parts, and the exit code."""
    assert said.code == code, said.err
    assert said.lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in said.lines) == 1
    assert "Traceback" not in said.err
    for part in parts:
        assert part in said.lines[-1]


MISTAKES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "command": (["trian"], ["unknown command 'trian'", "did you mean train?"]),
    "unlike any command": (["zzz"], ["one of train, evaluate, predict, analyze, explore, convert, export, check"]),
    "flag for a command": (["--epochs", "3"], ["unknown command '--epochs'"]),
    "flag of train": (["train", "--epohcs", "2"], ["--epohcs", "did you mean --epochs?"]),
    "flag of evaluate": (["evaluate", "r", "--spilt", "val"], ["--spilt", "did you mean --split?"]),
    "flag of resume": (["train", "--resume", "r", "--lr", "3"], ["--lr"]),
    "word too many": (["evaluate", "r", "s"], ["s", "selkern evaluate"]),
    "word for train": (["train", "imgs"], ["imgs"]),
    "no number": (["train", "--epochs", "two"], ["--epochs", "'two'"]),
    "no value": (["train", "--lr"], ["--lr"]),
    "too few values": (["train", "--mean", "0.5"], ["--mean", "3 values"]),
    "choice": (["train", "--optimizer", "adam"], ["--optimizer", "sgd", "adamw"]),
    "range": (["train", "--batch-size", "1"], ["batch_size is 1", "--batch-size", "must be at least 2"]),
    "range of augment": (["train", "--flip", "2"], ["flip 2", "--flip", "0..1"]),
    "range of a pair": (["train", "--crop-scale", "0.5", "0.2"], ["--crop-scale"]),
    "range of the run": (["train", "--workers", "-1"], ["workers is -1", "--workers"]),
    "learning rate": (["train", "--lr=-1"], ["lr is -1", "--lr", "must be above 0"]),
    "recipe": (["train", "--recipe", "cifer"], ["unknown recipe 'cifer'", "did you mean cifar?"]),
    "recipe with =": (["train", "--recipe=imagenet-papre"], ["did you mean imagenet-paper?"]),
    "no run": (["evaluate"], ["missing: RUN | selkern evaluate"]),
    "nothing of what is needed": (["convert"], ["missing: IN, OUT, --model STR | selkern convert"]),
    "no pattern fits": (["models", "zz*"], ["no model fits 'zz*'"]),
    "no run to predict with": (["predict"], ["selkern predict"]),
}


@pytest.mark.parametrize(("words", "parts"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_the_command_is_one_line(
    words: Sequence[str], parts: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = call(capsys, *words)
    refused(said, 2, *parts)
    assert len(said.lines) == 1
    assert said.out == ""
    assert not re.search(r"[│╭╰─]|-{5}", said.err)


@pytest.mark.parametrize("words", [MISTAKES[name] for name in ("flag of train", "range", "no number", "no run")])
def test_it_is_one_line_where_the_terminal_is_ascii(words: tuple[Sequence[str], Sequence[str]]) -> None:
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*PROGRAM, *words[0]], env=environment, capture_output=True, text=True, check=False)
    refused(Said(done.returncode, done.stdout, done.stderr), 2, *words[1])
    assert len(done.stderr.splitlines()) == 1
    assert "-----" not in done.stderr


def test_it_is_one_line_on_a_terminal_of_colours() -> None:
    """There the parser colours its box, and an escape is shown as text in an error of ours."""
    ours, theirs = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm-256color"}
    done = subprocess.run(
        [*PROGRAM, "predict", "run", "--nonsense"], env=environment, stdout=theirs, stderr=theirs, check=False
    )
    said = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert said.startswith("error: Unrecognized options: --nonsense | selkern predict | ")
    assert "x1b" not in said


def test_unknown_model(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = call(capsys, "train", "--data", data, "--output", tmp_path, "--model", "sknet_mni")
    refused(said, 2, "unknown model 'sknet_mni'", "sknet_mini")
    assert list(tmp_path.iterdir()) == []


def test_unknown_split_device_and_count(run: RunFolder, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(call(capsys, "evaluate", run.path, "--split", "tset"), 2, "'tset'", "--split", "train, val, test or all")
    refused(call(capsys, "analyze", run.path, "--split", "tset", "--output", run.path), 2, "'tset'", "--split")
    refused(call(capsys, "evaluate", run.path, "--device", "tpu"), 2, "'tpu'", "--device")
    refused(call(capsys, "predict", run.path, data, "--top-k", "0"), 2, "--top-k", "at least 1")
    refused(call(capsys, "predict", run.path), 2, "no images given")


def test_batch_larger_than_the_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = call(capsys, "train", "--data", data, "--output", tmp_path, *QUICK, "--batch-size", "64")
    assert (said.code, said.lines[-1].startswith("error")) == (0, False)
    assert "note: batch size 7, not 64: there are 28 training images, which give 4 steps an epoch; " in said.err
    kept = read_options(next(tmp_path.glob("sk_tiny-*"))).training
    assert (kept.batch_size, kept.accumulate) == (7, 1)


def folder_of(kind: str, root: Path) -> Path:
    if kind == "empty":
        root.mkdir()
    elif kind == "one class":
        make_folder(root, images=5, classes=("cat",))
    elif kind == "images without classes":
        draw(root / "a.png", 0, 0)
    elif kind == "text":
        root.write_text("hello")
    return root


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("missing", "no such data"),
        ("empty", "no class folders"),
        ("one class", "only class 'cat'"),
        ("images without classes", "no class folders"),
        ("text", "unknown kind of data"),
    ],
)
def test_data_that_cannot_be_used(kind: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of(kind, tmp_path / "data")
    said = call(capsys, "train", "--data", root, "--output", tmp_path / "runs", *QUICK)
    refused(said, 3, part, str(root))
    assert not (tmp_path / "runs").exists()


def test_an_unreadable_training_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = make_folder(tmp_path / "data" / "train", images=7) / "dog" / "001.jpg"
    make_folder(tmp_path / "data" / "val", images=2)
    broken.write_bytes(broken.read_bytes()[:80])
    said = call(
        capsys, "train", "--data", tmp_path / "data", "--output", tmp_path / "runs", *QUICK, "--on-bad-image", "error"
    )
    refused(said, 3, str(broken))


def test_a_loss_that_is_not_finite(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", data, "--output", tmp_path, *QUICK, "--epochs", "3", "--optimizer", "sgd", "--lr", "1e38"]
    refused(call(capsys, "train", *words), 6, "the loss is", "epoch", "--lr")


def test_weights_of_another_architecture(
    run: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", data, "--output", tmp_path, *QUICK, "--weights", run.path]
    refused(call(capsys, "train", *words, "--model", "resnet_mini"), 4, "sk_tiny", "resnet_mini", str(run.best))


@pytest.mark.parametrize("command", ["evaluate", "analyze", "predict"])
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("nothing", "no such run"),
        ("folder", "no such run"),
        ("no such file", "no such weights file"),
        ("cut file", "cannot be read"),
        ("text file", "cannot be read"),
        ("foreign file", "not a selkern weights file"),
    ],
)
def test_what_is_no_run_and_no_weights(
    kind: str, part: str, command: str, run: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / ("x" if kind in ("nothing", "folder") else "x.safetensors")
    if kind == "folder":
        given.mkdir()
    elif kind == "cut file":
        given.write_bytes(run.best.read_bytes()[:-7])
    elif kind == "text file":
        given.write_text("hello")
    elif kind == "foreign file":
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, given)
    refused(call(capsys, command, given, *([data] if command == "predict" else [])), 4, part, str(given))


def test_weights_whose_tensors_do_not_fit(run: RunFolder, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(run.best)
    tensors.pop("fc.bias")
    file = run.path.parent / "lacking.safetensors"
    save_weights(file, tensors, read_card(run.best))
    refused(call(capsys, "evaluate", file, "--data", data), 4, "fc.bias is missing", str(file))


def test_a_label_outside_the_classes(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_folder(tmp_path / "other", images=4, classes=("cat", "eel"))
    refused(call(capsys, "evaluate", run.path, "--data", other), 3, "'eel'", "cat, dog")


def test_evaluating_on_an_unreadable_image(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_folder(tmp_path / "test", images=2)
    make_folder(tmp_path / "train", images=2)
    (other / "cat" / "001.jpg").write_bytes(b"")
    refused(call(capsys, "evaluate", run.path, "--data", tmp_path), 3, str(other / "cat" / "001.jpg"))


@pytest.mark.parametrize("form", ["two words", "one word"])
def test_resuming_what_cannot_be_resumed(form: str, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    def resume(given: object) -> Said:
        return call(capsys, "train", *(["--resume", given] if form == "two words" else [f"--resume={given}"]))

    refused(resume(run.path.parent / "nothing"), 4, "no such run")
    refused(resume(run.path), 4, "this run is finished", str(run.path))


def test_resuming_the_latest_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(call(capsys, "train", "--resume"), 4, "no such run", "latest")


@pytest.mark.parametrize("name", ["a run", "plain"])
def test_the_printed_command_resumes_the_run(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    signal_at(monkeypatch, [1])
    words = ["--data", data, "--output", tmp_path, "--name", name, *QUICK]
    stopped = call(capsys, "train", *words)
    assert stopped.code == 130
    assert stopped.lines[-1].startswith("state saved; continue with: selkern train --resume ")
    _, *again = shlex.split(stopped.lines[-1].partition(": ")[2])
    resumed = call(capsys, *again)
    assert resumed.code == 0
    evaluate = next(line for line in resumed.out.splitlines() if "selkern evaluate" in line)
    assert call(capsys, *shlex.split(evaluate)[1:]).code == 0


def test_a_damaged_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal_at(monkeypatch, [1])
    assert call(capsys, "train", "--data", data, "--output", tmp_path, "--name", "r", *QUICK).code == 130
    (file,) = (tmp_path / "r" / "state").glob("step-*/optimizer.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    refused(call(capsys, "train", "--resume", tmp_path / "r"), 4, "differs from what was written", str(file))


def test_a_folder_that_cannot_be_written(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    said = call(capsys, "train", "--data", data, "--output", tmp_path / "file" / "runs", *QUICK)
    refused(said, 5, "cannot make a run folder", "--output")


def test_out_of_memory_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore\nlines")

    monkeypatch.setattr("selkern.train.loop.Training._train_step", step)
    said = call(capsys, "train", "--data", data, "--output", tmp_path, *QUICK)
    refused(said, 5, "out of memory", "--batch-size", "--accumulate")


def test_debug_shows_the_error_itself() -> None:
    with pytest.raises(SelkernError, match="unknown command"):
        cli.main(["trian", "--debug"])
    with pytest.raises(CheckpointError):
        cli.main(["--debug", "evaluate", "nothing"])


def test_ctrl_c_before_training_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("selkern.cli.program._dispatch", interrupted)
    said = call(capsys, "models")
    assert (said.code, said.err) == (130, "stopped\n")


# What the commands answer


def test_evaluate_says_the_same_in_text_and_json(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, "evaluate", run.path, "--split", "train")
    shown = json.loads(call(capsys, "evaluate", run.path, "--split", "train", "--json").out)
    assert text.code == 0
    assert shown["images"] == 28
    assert f"top1 {shown['top1']:.2%} (95 % interval {shown['top1_low']:.2%} to {shown['top1_high']:.2%})" in text.out
    assert f"top5 {shown['top5']:.2%}  loss {shown['loss']:.4f} nats" in text.out
    for row in shown["classes"]:
        assert re.search(rf"  {row['class']} +{row['images']} images +{row['right']:.2%}", text.out)
    recorded = json.loads(call(capsys, "evaluate", run.path, "--split", "val", "--json").out)
    assert read_card(run.best).metrics["val_top1"] == recorded["top1"]


def test_evaluate_takes_weights_and_other_data(run: RunFolder, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(call(capsys, "evaluate", run.best, "--data", data, "--split", "val", "--json").out)
    assert (shown["model"], shown["split"], shown["images"]) == ("sk_tiny", "val", 4)


def test_predict_says_the_same_in_text_and_json(
    run: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no")
    paths = [data / "cat" / "000.png", broken, data / "dog"]
    text = call(capsys, "predict", run.path, *paths, "--top-k", "2")
    shown = call(capsys, "predict", run.path, *paths, "--top-k", "2", "--json")
    refused(text, 3, str(broken))
    assert shown.code == 3
    assert shown.err == f"selkern {__version__}: predicting with {run.path}\n"
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert len(rows) == 20
    assert [row["path"] for row in rows[:3]] == [str(paths[0]), str(broken), str(data / "dog" / "000.png")]
    assert str(broken) in rows[1]["error"]
    lines = [line.split("\t") for line in text.out.splitlines()]
    for row, line in zip([r for r in rows if not r["error"]], lines, strict=True):
        pairs = zip(row["classes"], row["probabilities"], strict=True)
        assert line == [row["path"], *(f"{name} {p:.3f}" for name, p in pairs)]
    assert call(capsys, "predict", run.path, paths[0]).code == 0


@pytest.mark.exhaustive
def test_analyze_says_the_same_in_text_and_json(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = json.loads(call(capsys, "analyze", run.path, "--output", tmp_path / "there", "--json").out)
    assert shown["report"] == str(tmp_path / "there" / "report.html")
    assert Path(shown["report"]).is_file()
    assert shown["studies"] == json.loads((tmp_path / "there" / "studies.json").read_text())
    text = call(capsys, "analyze", run.path, "--output", tmp_path / "there")
    assert f"top1 {shown['top1']:.2%} on 4 images" in text.out
    assert text.out.strip().endswith(f"report: {shown['report']}")


def test_models_says_the_same_in_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, "models", "sk*mini*").out
    shown = json.loads(call(capsys, "models", "sk*mini*", "--json").out)
    assert [row["name"] for row in shown] == ["sknet_mini", "sknet_mini_sum"]
    for row in shown:
        assert re.search(rf"{row['name']} +{row['parameters'] / 1e6:.3f} M +{row['macs'] / 1e9:.3f}", text)


def test_options_of_a_run_come_from_recipe_and_flags(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selkern.train.options import TrainOptions
    from selkern.train.recipe import RECIPES

    asked: list[TrainOptions] = []
    monkeypatch.setattr("selkern.train.run.train", lambda options, _: asked.append(options))
    for words in (
        ["--data", str(data), "--epochs", "7", "--flip", "0.25"],
        ["--recipe=imagenet-light", "--data", str(data), "--milestones", "1", "2"],
        [],
    ):
        assert cli.main(["train", *words, "--output", str(tmp_path)]) == 0
    cifar, light, digits = asked
    assert (cifar.recipe, cifar.training.epochs, cifar.training.augment.flip) == ("cifar", 7, 0.25)
    assert cifar.training.lr == RECIPES["cifar"].lr
    assert list(light.training.milestones) == [1, 2]
    assert light.training.augment == RECIPES["imagenet-light"].augment
    assert (digits.data, digits.recipe, digits.training) == ("digits", "digits", RECIPES["digits"])


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], [], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_is_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = call(capsys, *words)
    assert said.code == 0
    assert "usage: selkern" in said.out
    assert said.err == ""
    assert not re.search(r"noqa|type: ignore|pragma", said.out)
    if not words:
        assert all(name in said.out for name in cli.COMMANDS)


def test_help_of_resume_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    said = call(capsys, "train", "--resume", "--help")
    assert said.code == 0
    assert "--extend" in said.out
    assert "--lr" not in said.out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version").out == f"selkern {__version__}\n"


# Each as (words, what must not have been imported): help and mistakes are answered before anything heavy is loaded.
HEAVY = ["torch", "numpy", "PIL", "matplotlib", "scipy", "sklearn", "pyarrow", "jinja2"]


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], HEAVY),
        (["--version"], HEAVY),
        (["trian"], HEAVY),
        (["evaluate", "--help"], HEAVY),
        (["evaluate", "r", "--spilt", "x"], HEAVY),
        (["predict", "r", "p", "--top-k", "0"], HEAVY),
        (["models"], HEAVY),
        (["train", "--help"], [name for name in HEAVY if name not in ("numpy", "PIL")]),
        (["train", "--epohcs", "3"], [name for name in HEAVY if name not in ("numpy", "PIL")]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] not in HEAVY else "",
)
def test_help_and_mistakes_load_nothing_heavy(words: list[str], heavy: list[str]) -> None:
    program = "import sys; from selkern import cli; cli.main(sys.argv[1:]); print('LOADED', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "selkern.cli" in loaded
    assert not loaded & set(heavy)


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join)
def test_a_reader_that_left_is_no_error(words: list[str], buffered: bool) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": "" if buffered else "1"}
    try:
        done = subprocess.run(
            [*PROGRAM, *words], env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_models_name_shows_layers_and_differences(capsys: pytest.CaptureFixture[str]) -> None:
    lines = call(capsys, "models", "sknet101").out.splitlines()
    assert lines[0] == "sknet101: paper Table 1; the authors' sknet50.prototxt"
    assert lines[1] == "counted    48,736,040 parameters, 8.449 GMACs at 224 x 224 px"
    assert lines[2] == "printed    48.9 M parameters, 8.46 GMACs, top-1 error 20.19 % (Table 1)"
    run = next(line for line in lines if line.startswith("stages.2.1-22 "))
    assert run.split("  ")[-1] == "1x1 512, SK(3x3 G32 + 3x3 d2 G32; d 32) 512, 1x1 1024"
    assert "sknet101.prototxt has 16 in stage 3" in lines[-1]
    shown = json.loads(call(capsys, "models", "sknet101", "--json").out)
    assert len(shown["layers"]) == 2 + 33 + 1
    assert sum(layer["parameters"] for layer in shown["layers"]) == shown["parameters"]
