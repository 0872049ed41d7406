"""The wheel as people get it: built by `python -m build`, installed into an empty environment, and used there.

The environments hold links to the packages of the running one, nothing else, and pip installs the wheel without an
index: it succeeds only where selkern asks for nothing more than they hold. So nothing is fetched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from selkern import __version__, cli

pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).parents[1]
CORE = ("torch", "numpy", "safetensors")
TRAIN = ("pillow", "simplejpeg", "pyarrow", "scikit-learn", "tyro", "pyyaml", "tqdm", "matplotlib", "jinja2")
# Nothing of the checkout, and no index or folder of packages that pip was given.
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
CLEAN |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
CLEAN |= {"OMP_NUM_THREADS": "1"}  # small tensors: more threads wait for each other


def distribution(name: str) -> Distribution:
    """The newest that is found here: an environment laid over another may bring an old setuptools of its own."""
    return max(distributions(name=name), key=lambda result: Version(result.version))


def needed(names: Iterable[str]) -> set[str]:
    """The distributions and all that they require, as they are installed here."""
    result: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in result:
            continue
        result.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return result


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds some distributions of the running one."""

    path: Path
    holds: frozenset[str]

    @classmethod
    def of(cls, path: Path, names: Iterable[str]) -> Environment:
        """Made anew, with these distributions and what they require."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
        (site,) = path.glob("lib/python*/site-packages")
        made = cls(path, frozenset(needed(names)))
        for name in made.holds:
            files = distribution(name).files or []
            for part in {file.parts[0] for file in files} - {"..", "__pycache__"}:
                if not (site / part).exists():
                    (site / part).symlink_to(Path(str(distribution(name).locate_file(part))))
        return made

    def pip(self, *words: str) -> str:
        """What a pip of this environment would do; the running one does it."""
        return run([sys.executable, "-m", "pip", "--python", str(self.path / "bin" / "python"), *words], ROOT).stdout

    def installed(self) -> set[str]:
        """Names of all distributions."""
        return {canonicalize_name(row["name"]) for row in json.loads(self.pip("list", "--format", "json"))}

    def selkern(self, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """The command, called in a folder."""
        return run([str(self.path / "bin" / "selkern"), *words], folder, check=False)


def run(words: list[str], folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A program in a folder outside the checkout's packages; its errors are shown where it fails."""
    done = subprocess.run(words, env=CLEAN, cwd=folder, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sources alone, by way of the source distribution: no earlier build can add to it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    builder = Environment.of(tmp_path_factory.mktemp("build") / "venv", ["build", "setuptools"])
    run([str(builder.path / "bin" / "python"), "-m", "build", "--no-isolation", "--outdir", str(target)], source)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment.of(tmp_path_factory.mktemp("core") / "venv", CORE)
    made.pip("install", str(wheel))
    return made


@pytest.fixture(scope="module")
def with_train(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment.of(tmp_path_factory.mktemp("train") / "venv", (*CORE, *TRAIN))
    made.pip("install", f"{wheel}[train]")
    return made


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {line.removeprefix("src/") for line in listed.stdout.splitlines()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"selkern-{__version__}.dist-info/")}
    assert names == wanted


def test_the_core_asks_for_torch_numpy_and_safetensors_alone(core: Environment) -> None:
    assert core.installed() == core.holds | {"selkern"}
    assert "pillow" not in core.holds
    assert core.pip("check").strip() == "No broken requirements found."


def test_the_core_builds_trains_records_folds_exports_and_saves(core: Environment, tmp_path: Path) -> None:
    program = shutil.copy(ROOT / "tests" / "core_program.py", tmp_path)
    done = run([str(core.path / "bin" / "python"), "-W", "error", str(program)], tmp_path)
    assert done.stdout.startswith(f"ok: selkern {__version__} on Python ")


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name not in ("doctor", "yolo")])
def test_a_command_of_the_core_is_one_line(command: str, core: Environment, tmp_path: Path) -> None:
    lines = [[command], [command, "--help"]] if command != "data" else [["data", "check", "x"]]
    for words in lines:
        done = core.selkern(*words, folder=tmp_path)
        reported = f"error: tyro is not installed | selkern {command} | pip install 'selkern[train]'\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", reported)


def test_yolo_of_the_core_names_what_is_missing(core: Environment, tmp_path: Path) -> None:
    done = core.selkern("yolo", "train", folder=tmp_path)
    reported = "error: ultralytics is not installed | selkern.ultralytics | pip install ultralytics\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", reported)


def test_help_version_and_doctor_of_the_core(core: Environment, tmp_path: Path) -> None:
    for words in (["--help"], ["--version"], ["doctor"]):
        done = core.selkern(*words, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert __version__ in done.stdout
    assert "pip install 'selkern[train]'" in done.stdout


def test_train_adds_what_its_extra_names(with_train: Environment) -> None:
    assert with_train.installed() == with_train.holds | {"selkern"}
    assert with_train.pip("check").strip() == "No broken requirements found."


def test_train_ends_in_a_report(with_train: Environment, tmp_path: Path) -> None:
    words = ["--data", "digits:train=64,val=16,test=40", "--epochs", "1", "--name", "run"]
    done = with_train.selkern("train", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "</html>" in (tmp_path / "runs" / "train" / "run" / "report.html").read_text()
    done = with_train.selkern("evaluate", "latest", "--json", folder=tmp_path)
    assert json.loads(done.stdout)["images"] == 40


def test_a_study_of_ours_runs_outside_the_checkout(with_train: Environment, tmp_path: Path) -> None:
    done = with_train.selkern("study", "mixers", "--short", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Plain, SE, summed and selected branches at equal cost")
    assert (tmp_path / "runs" / "studies" / "mixers-short" / "mixers.svg").is_file()
    (line,) = with_train.selkern("study", "mixer", folder=tmp_path).stderr.splitlines()
    assert line.startswith("error: no such study | mixer | did you mean mixers? give a .yaml file or one of branches, ")
