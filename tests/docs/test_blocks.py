"""The blocks of Python and shell on the pages run as they are printed, the shell's on small data and for one epoch."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from annotated import boxes, make_voc
from shim import timm_or_skip
from tiny import ENVIRONMENT, PROGRAM, draw, make_folder, signal_at

from docs.blocks import BLOCKS, NOT_RUN, PAGES, PYTHON, SHELL, Block
from selkern.cli import main

timm_or_skip()

CODE = """
from torch import Tensor, nn

import selkern


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer2 = selkern.SelectiveKernel(8, 16, groups=4, stride=2)
        self.layer3 = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


class MyAttention(selkern.SelectiveKernel):
    pass
"""
# Command -> options that make it small, each where the line does not give it.
SMALL = {
    "train": "--data=digits:train=64,val=16,test=40 --model=sknet_mini --epochs=1 --image-size=32 --batch-size=8"
    " --no-report",
    "analyze": "--images=8 --field-images=2 --looks=1",
    "bench": "--budget=0.1 --batch-size=1 --image-size=32",
    "export": "--images=8",
}
# In processes of their own: one that has used OpenVINO and NNCF ended with a segmentation fault some commands later
# (docs/log.md).
APART = ("export", "bench")


def small(words: list[str]) -> list[str]:
    """The words of a command, and options that make it small."""
    result = list(words)
    given = {word.partition("=")[0] for word in words}
    if words[0] == "train" and "--resume" in given:
        return result
    for option in SMALL.get(words[0], "").split():
        name = option.partition("=")[0]
        unneeded = name in ("--model", "--image-size") and given & {"--weights", "RUN", "latest"}
        if name not in given and not unneeded:
            result += option.split("=", 1)
    if words[0] == "analyze" and ":" in words[1]:
        result += ["--image-size", "32"]
    if "--int8" in given:
        result += ["--calibration-images", "16", "--max-drop", "100"]
    return result


def test_every_block_has_a_language_that_is_known() -> None:
    assert {block.language for block in BLOCKS} <= {"", "sh", "python", "yaml", "text"}


def test_what_is_not_run_is_a_block() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(rf"^{re.escape(NOT_RUN)}[^\n]*\*\n\n```", text, re.MULTILINE)) == text.count(
            f"\n{NOT_RUN}"
        )


def test_most_blocks_run() -> None:
    assert len(PYTHON) >= 14
    assert len(SHELL) >= 12


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_block_of_python(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where some write files
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the lines name: pictures, boxes, code, a run that ended and one that was stopped after its first epoch."""
    root = tmp_path_factory.mktemp("world") / "here"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("OMP_NUM_THREADS", "1")
        make_folder(root / "photos")
        draw(root / "folder" / "one.png", 0, 1)
        shutil.copy(root / "folder" / "one.png", root / "picture.png")
        make_voc(root / "FOLDER", boxes(10))
        (root / "my_code.py").write_text(CODE)
        assert main(["data", "import", "voc", "FOLDER", "--to", "crops/"]) == 0
        crops = ["--model", "sknet_mini", "--epochs", "1", "--image-size", "32", "--batch-size", "4", "--no-report"]
        assert main(["train", "--data", "crops/", "--output", ".", "--name", "RUN", *crops]) == 0
        signal_at(patch, [9])  # in its second epoch of seven steps
        crops[crops.index("1")] = "2"
        assert main(["train", "--data", "photos/", "--name", "stopped", *crops]) == 130
    shutil.copy(root / "runs" / "train" / "stopped" / "weights" / "best.safetensors", root / "weights.safetensors")
    shutil.copytree(root, root.parent / "kept")
    yield root


def until_it_serves(words: list[str]) -> int:
    """The exit code of a command that serves a page, stopped as soon as it says where."""
    command = [*PROGRAM, *words, "--no-browser"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline().startswith("open http://")
        program.send_signal(signal.SIGINT)
        return program.wait(timeout=30)


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_block_of_shell(block: Block, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(world)  # runs know their data by place: the same for every block
    shutil.copytree(world.parent / "kept", world)
    monkeypatch.chdir(world)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = world / "runs" / "train"
    for command in block.commands():
        if not block.is_first(command):
            continue
        words = shlex.split(command)
        if "--resume" in words:
            (runs / "latest.txt").write_text(f"{runs / 'stopped'}\n")
        if "openvino" in words and find_spec("openvino") is None:
            continue  # it comes with `make clients`, where these tests run
        if "--to" in words and words[0:2] == ["selkern", "data"]:
            shutil.rmtree(world / words[words.index("--to") + 1], ignore_errors=True)
        if words[0] == "torchrun":
            at = words.index("selkern.cli") + 1
            words = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:at], *small(words[at:])]
            assert subprocess.run(words, env=ENVIRONMENT, timeout=120, check=False).returncode == 0, command
            continue
        assert words[0] == "selkern", f"{command}: run it here, or say on the page that it is not run"
        serves = words[1] == "explore" and "--static" not in words
        if serves:
            code = until_it_serves(words[1:])
        elif words[1] in APART:
            code = subprocess.run([*PROGRAM, *small(words[1:])], env=ENVIRONMENT, timeout=180, check=False).returncode
        else:
            code = main(small(words[1:]))
        assert code == 0 or (code == 1 and words[1] == "check"), command
