"""Where an optional package is absent: every command answers with one line that names the extra to install."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tiny import ENVIRONMENT, SOURCE, make_folder

from selkern import cli
from selkern.extras import OPTIONAL, missing

CORE = {"torch", "numpy", "safetensors"}
# Runs each command line in turn as `selkern` would, without the packages; prints exit code, output and errors of each.
PROGRAM = """
import contextlib, io, json, sys, traceback
absent, lines = json.loads(sys.argv[1])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from selkern.cli import main
said = []
for words in lines:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except BaseException:
            traceback.print_exc()
            code = -1
    said.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(said))
"""
Answers = list[tuple[int, str, str]]


def without(absent: Sequence[str], *lines: Sequence[str], folder: Path) -> Answers:
    """Exit code, output and errors of command lines, called in a folder where some packages cannot be imported."""
    words = [sys.executable, "-c", PROGRAM, json.dumps([list(absent), lines])]
    done = subprocess.run(words, env=ENVIRONMENT, cwd=folder, capture_output=True, text=True, check=True)
    return [tuple(answer) for answer in json.loads(done.stdout)]


def roots(extras: Sequence[str]) -> list[str]:
    return [package.module.partition(".")[0] for package in OPTIONAL if package.extra in extras]


@pytest.fixture(scope="module")
def of_the_core(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """What every command and its help say where the core alone is installed."""
    lines = [[name, *more] for name in cli.COMMANDS for more in ([], ["--help"], ["x", "--json"])]
    lines += [["data", "check", "x"], ["data", "check", "--help"], ["train", "--resume"], ["doctor", "--json"]]
    lines += [["--help"], ["--version"], []]
    said = without(
        [*roots(["train", "convert", "hub", "timm", "ray"]), "ultralytics"],
        *lines,
        folder=tmp_path_factory.mktemp("core"),
    )
    return {" ".join(words): answer for words, answer in zip(lines, said, strict=True)}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_of_a_core_installation_names_its_extra(
    command: str, of_the_core: dict[str, tuple[int, str, str]]
) -> None:
    reported = (1, "", f"error: tyro is not installed | selkern {command} | pip install 'selkern[train]'\n")
    if command == "yolo":  # whose arguments are not read by tyro
        reported = (1, "", "error: ultralytics is not installed | selkern.ultralytics | pip install ultralytics\n")
    answers = {line: said for line, said in of_the_core.items() if line.partition(" ")[0] == command}
    lives = {
        "doctor": {"doctor", "doctor --json"},
        "data": {"data", "data --help", "data x --json"},
        "yolo": {"yolo", "yolo --help"},
    }.get(command, set())
    assert {line: said for line, said in answers.items() if line not in lives} == dict.fromkeys(
        answers.keys() - lives, reported
    )
    for line in lives:
        assert "Traceback" not in "".join(map(str, of_the_core[line]))


def test_help_version_and_doctor_need_no_extra(of_the_core: dict[str, tuple[int, str, str]]) -> None:
    for line in ("", "--help", "--version", "doctor", "doctor --json"):
        code, out, err = of_the_core[line]
        assert (code, err) == (0, "")
        assert out
    assert json.loads(of_the_core["doctor --json"][1])["tyro"]["note"] == "pip install 'selkern[train]'"


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("PIL", ["predict", "sknet_mini.digits", "x.png"]),
        ("yaml", ["study", "mixers"]),
        ("sklearn", ["evaluate", "sknet_mini.digits"]),
        ("pyarrow", ["evaluate", "sknet_mini.digits", "--data", "images.parquet"]),
        ("google", ["convert", "net.caffemodel", "new.safetensors", "--model", "sknet50"]),
        ("huggingface_hub", ["evaluate", "hf-hub:timm/skresnet18.ra_in1k"]),
        ("timm", ["check", "timm:skresnet18"]),
        ("aiohttp", ["evaluate", "sknet_mini.digits", "--data", "https://127.0.0.1:9/a.tar"]),
        ("fsspec", ["data", "check", "s3://bucket/a.tar"]),
        ("starlette", ["explore", "sknet_mini.digits"]),
        ("uvicorn", ["explore", "sknet_mini.digits"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_package_that_is_absent_alone_is_named_too(absent: str, words: list[str], tmp_path: Path) -> None:
    make_folder(tmp_path / "images")
    for name in ("images.parquet", "net.caffemodel"):
        (tmp_path / name).write_bytes(b"PAR1")
    ((code, _, err),) = without([absent], words, folder=tmp_path)
    extra = next(package.extra for package in OPTIONAL if package.module.partition(".")[0] == absent)
    assert code in (1, 2), err
    *first, line = err.splitlines()  # before it a command may greet
    assert line.startswith("error: ")
    assert "error" not in "".join(first)
    assert line.endswith(f"| pip install 'selkern[{extra}]'")


def test_every_package_that_selkern_imports_is_of_the_core_or_has_an_extra() -> None:
    result = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                result.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                result |= {alias.name.partition(".")[0] for alias in node.names}
    optional = set(roots([package.extra for package in OPTIONAL]))
    others = result - set(sys.stdlib_module_names) - CORE - optional - {"selkern", "typing_extensions"}
    # Of `to_frame` alone, which says so itself; comes with jinja2; the user's own, which `selkern.ultralytics` extends.
    assert others == {"pandas", "markupsafe", "ultralytics"}
    by_name = {"ray", "onnx", "onnxscript", "onnxruntime", "nncf"}
    assert optional - result == by_name


def test_the_extras_are_those_of_the_package() -> None:
    wanted = [Requirement(line) for line in requires("selkern") or ()]
    for package in OPTIONAL:
        if package.distribution != "scipy":  # comes with scikit-learn
            for_it = [one for one in wanted if one.marker and one.marker.evaluate({"extra": package.extra})]
            assert package.distribution in {one.name for one in for_it}, package
    assert {one.name for one in wanted if one.marker is None} == CORE


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (ModuleNotFoundError("", name="PIL"), "PIL is not installed | here | pip install 'selkern[train]'"),
        (ModuleNotFoundError("", name="shtab"), "shtab is not installed | here | pip install shtab"),
        (ModuleNotFoundError("", name="fcntl"), "fcntl is not installed | here | use a Python that has it"),
        (
            ImportError("no _imaging", name="PIL._imaging"),
            "PIL cannot be imported (no _imaging) | here | pip install 'selkern[train]'",
        ),
        (ModuleNotFoundError("", name="selkern.nothing"), "None"),
        (ImportError("no name"), "None"),
    ],
)
def test_the_line_says_what_is_known(error: ImportError, reported: str) -> None:
    assert str(missing(error, "here")) == reported
