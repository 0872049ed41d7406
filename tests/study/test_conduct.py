"""Studies as people call them: real runs in processes of their own, stopped, killed, continued, and reported."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from small_study import CODE, PLAIN, write
from tiny import ENVIRONMENT, PROGRAM, order_of, tree

from selkern.cli import main
from selkern.errors import CheckpointError, Interrupted, SelkernError, UsageError
from selkern.study import conduct as conducting
from selkern.study.conduct import Conducted, conduct
from selkern.study.engine import require_success
from selkern.study.options import StudyOptions
from selkern.study.plan import FOLDER, costs, read
from selkern.study.present import draw, findings, render
from selkern.study.results import assemble, measure
from selkern.study.run import output_file, read_result

ARMS = ("sk", "plain")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("file"))


def options(file: Path, folder: Path, **given: Any) -> StudyOptions:
    return StudyOptions(**{"name": str(file), "output": folder / "runs", "results": folder / "results", **given})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def done(file: Path, home: Path) -> Conducted:
    """The small study, carried out once, two runs at a time."""
    return conduct(options(file, home, jobs=2))


def lasting(results: dict[str, Any]) -> dict[str, Any]:
    """All that no two reruns may differ in."""
    return {key: value for key, value in results.items() if key != "circumstances"}


def test_the_files_hold_every_run_and_what_it_depends_on(done: Conducted, file: Path, home: Path) -> None:
    assert [path.name for path in done.files] == ["small.json", "small.md", "small.svg"]
    results = json.loads((home / "results" / "small.json").read_text())
    assert results == done.results
    assert (home / "results" / "small.md").read_text() == done.text
    assert (home / "results" / "small.svg").read_text().startswith("<svg")
    assert results["study"]["file"] == file.read_text()
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    assert len({run["weights_sha256"] for run in results["runs"]}) == 4
    assert results["threads"] == 1
    assert results["versions"][0]["threads"] == "1"
    assert results["circumstances"]["command"] == "selkern study small.yaml"
    assert str(home) not in json.dumps(results)
    for run in results["runs"]:
        assert sum(each["images"] for each in run["per_scale"]) == run["images"] == 40
        right = sum(each["top1"] * each["images"] for each in run["per_scale"] if each["images"])
        assert right == pytest.approx(40 * run["top1"])


def test_the_table_is_what_the_runs_give_when_computed_again(done: Conducted) -> None:
    top1 = {arm: np.array([run["top1"] for run in done.results["runs"] if run["arm"] == arm]) for arm in ARMS}
    difference = 100 * (top1["plain"] - top1["sk"])
    interval = ttest_1samp(difference, 0).confidence_interval(0.95)
    row = next(line for line in done.text.splitlines() if line.startswith("| plain |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3] == f"{top1['plain'].mean():.2%}"
    assert cells[4:7] == [f"{difference.mean():+.2f}", f"[{interval.low:+.2f}, {interval.high:+.2f}]", "2"]
    assert (cells[7] == "no difference seen") == (interval.low <= 0 <= interval.high)


def test_arms_of_a_seed_saw_the_same_order_and_other_seeds_another(done: Conducted, home: Path) -> None:
    assert done.results["seeds"] == [0, 1]
    orders = {
        (arm, seed): order_of(home / "runs" / "small" / f"{arm}-seed{seed}" / "train" / "run" / "order.rank0.csv")
        for arm in ARMS
        for seed in (0, 1)
    }
    for seed in (0, 1):
        assert np.array_equal(orders["sk", seed], orders["plain", seed])
    assert not np.array_equal(orders["sk", 0], orders["sk", 1])
    runs = {(run["arm"], run["seed"]): run["order_sha256"] for run in done.results["runs"]}
    assert runs["sk", 0] == runs["plain", 0] != runs["sk", 1] == runs["plain", 1]


def runs_of(home: Path) -> dict[tuple[str, int], dict[str, Any]]:
    result = {
        (arm, seed): read_result(home / "runs" / "small" / f"{arm}-seed{seed}") for arm in ARMS for seed in (0, 1)
    }
    return {key: copy.deepcopy(run) for key, run in result.items() if run is not None}


def test_unpaired_runs_are_refused(done: Conducted, file: Path, home: Path) -> None:
    study, result = read(file), runs_of(home)
    assert lasting(assemble(study, costs(study), result, 1, "")) == lasting(done.results)
    result["plain", 1]["figures"]["order_sha256"] = "0"
    with pytest.raises(CheckpointError, match=r"plain and sk did not see the same images.*seed 1"):
        assemble(study, costs(study), result, 1, "")


def test_results_tell_no_folder_of_the_machine(done: Conducted, file: Path, home: Path) -> None:
    study = read(file)
    expected = "/home/somebody/pictures"
    arms = tuple(replace(arm, options=replace(arm.options, data=expected)) for arm in study.arms)
    asked = options(file, home, data=expected, threads=2)
    results = assemble(replace(study, arms=arms), costs(study), runs_of(home), 2, conducting.command(asked))
    assert "somebody" not in json.dumps(results)
    assert results["arms"]["sk"]["data"] == "pictures"
    assert results["circumstances"]["command"] == "selkern study small.yaml --data pictures --threads 2"
    assert results["runs"] == done.results["runs"]


def test_no_winner_is_named_where_zero_is_inside_and_losers_are(done: Conducted) -> None:
    results = copy.deepcopy(done.results)
    expected = results["arms"]["plain"]["difference"]
    expected |= {"mean": 0.01, "interval": [-0.001, 0.021], "verdict": "no difference seen"}
    assert list(findings(results)) == ["- plain and sk: no difference seen (+1.00 points [-0.10, +2.10])"]
    expected |= {"mean": -0.01, "interval": [-0.02, -0.001], "verdict": "worse"}
    assert list(findings(results)) == ["- plain is worse than sk: -1.00 points [-2.00, -0.10]"]
    assert "| -1.00 | [-2.00, -0.10] | 2 | worse |" in render(results)
    expected |= {"mean": 0.01, "interval": None, "verdict": "one seed: no interval"}
    assert list(findings(results)) == ["- plain and sk: one seed: no interval (+1.00 points)"]


def test_a_finished_study_trains_nothing_again(done: Conducted, file: Path, home: Path) -> None:
    before = tree(home / "runs")
    again = conduct(options(file, home, jobs=2))
    assert tree(home / "runs") == before
    assert lasting(again.results) == lasting(done.results)
    assert {run["arm"] for run in again.results["circumstances"]["runs"]} == set(ARMS)


@pytest.mark.exhaustive
def test_the_users_own_code_is_trained_and_evaluated(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    own = "  {name}: {{model: 'mine.py:net', with: '8'{more}}}"
    arms = own.format(name="plain", more="") + "\n" + own.format(name="selective", more=", selectify: '1.0'")
    file = write(tmp_path, (PLAIN, arms), ("seeds: 2", "seeds: 1\nselection: true"), ("epochs: 2", "epochs: 1"))
    done = conduct(options(file, tmp_path, jobs=2))
    assert done.results["arms"]["selective"]["model"] == "mine.py:net"
    effects = {row["what"] for row in done.results["arms"]["selective"]["selection"]}
    assert "top-1 with the selection shuffled" in effects
    assert str(tmp_path) not in json.dumps(done.results)  # no folder of this machine


@pytest.mark.exhaustive
def test_a_run_that_another_study_did_is_not_trained_again(done: Conducted, home: Path, tmp_path: Path) -> None:
    """Under other names, in other bins of scale; but not where anything that decides the training differs."""
    arms = (("  sk:", "  first:"), ("  plain:", "  second:"), ("baseline: sk", "baseline: first"))
    file = write(tmp_path, *arms, ("seeds: 2", "seeds: 1\nscale_bins: [1, 4]\nselection: true"), name="other")
    shutil.copytree(home / "runs" / "small" / "sk-seed0", tmp_path / "runs" / "small" / "sk-seed0")
    task = tmp_path / "runs" / "small" / "plain-seed0" / "task.json"
    shutil.copytree(home / "runs" / "small" / "plain-seed0", task.parent)
    task.write_text(task.read_text().replace('"lr": 0.004', '"lr": 0.003'))
    result = conduct(options(file, tmp_path, jobs=2)).results
    assert [run["taken_from"] for run in result["circumstances"]["runs"]] == ["small/sk-seed0", None]
    for run, theirs in zip(result["runs"], done.results["runs"], strict=False):
        for same in ("top1", "loss", "weights_sha256", "order_sha256"):
            assert run[same] == theirs[same]
        assert len(run["per_scale"]) == 1 != len(theirs["per_scale"])
    first, second = result["runs"]
    assert (len(first["selection"]), second["selection"]) == (2 * 3 + 4, [])  # of the units; of all together
    text = render(result)
    assert "hours of training in all, 1 of the 2 runs with small." in text
    assert "| first | SK_2_1 | " in text
    assert "| arm | unit | top-1 with the selection frozen | " in text
    assert len(draw(result).axes) == 2 + 1 + 3  # seeds and differences; scales; three figures of the units


@pytest.mark.usefixtures("done")
def test_a_changed_file_is_told_and_nothing_is_overwritten(home: Path, tmp_path: Path) -> None:
    before = tree(home)
    changed = write(tmp_path, ("epochs: 2", "epochs: 3"))
    with pytest.raises(UsageError, match=r"results of another study, or of another version of its file . .*small.json"):
        conduct(options(changed, home))
    with pytest.raises(UsageError, match=r"the study's file or options changed since this run .*sk-seed0"):
        conduct(options(changed, home, results=tmp_path / "new"))
    assert tree(home) == before


def start(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = [*PROGRAM, "study", str(file), "--output", str(folder / "runs"), "--results", str(folder / "results")]
    return subprocess.Popen([*words, "--jobs", "2"], env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not any(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} never came"
        time.sleep(0.02)


@pytest.mark.usefixtures("done")
@pytest.mark.exhaustive
def test_a_study_killed_and_stopped_goes_on_and_ends_with_the_same_results(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All its processes killed at a random time; then only the parent, which the others must notice; then Ctrl+C."""
    chance = random.Random()  # another time in every call of the tests
    file = write(tmp_path, ("seeds: 2", "seeds: 1"))
    first = start(file, tmp_path)
    wait_for(tmp_path, "runs/small/*/output.txt")
    time.sleep(chance.uniform(0, 6))
    for pid in (first.pid, *children(first.pid)):
        os.kill(pid, signal.SIGKILL)
    first.communicate()

    second = start(file, tmp_path)
    wait_for(tmp_path, "runs/small/*/train/run*/config.yaml")
    time.sleep(chance.uniform(0, 0.5))
    second.kill()
    second.communicate()

    # This call waits until the processes of the second have saved their states and ended.
    timer = threading.Timer(chance.uniform(2, 6), os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises((Interrupted, KeyboardInterrupt, Done)) as stopped:  # as the signal finds it: in a run or not
        conduct(options(file, tmp_path, jobs=2))
        timer.cancel()
        raise Done
    assert getattr(stopped.value, "exit_code", 130) == 130
    assert "Traceback" not in capsys.readouterr().err

    last, study = conduct(options(file, tmp_path, jobs=2)), read(file)
    assert lasting(last.results) == lasting(assemble(study, costs(study), runs_of(home), 1, ""))
    assert [run["arm"] for run in last.results["runs"]] == list(ARMS)


class Done(Exception):
    """The study ended before it was to be stopped."""


@pytest.mark.exhaustive
def test_a_failing_arm_ends_the_study_with_its_own_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wild = "plain: {model: resnet_mini, training: {lr: 1.0e+30}, change"
    file = write(tmp_path, ("plain: {model: resnet_mini, change", wild), ("seeds: 2", "seeds: 1"))
    folders = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(["study", str(file), *folders, "--jobs", "2"]) == 6
    lines = capfd.readouterr().err.splitlines()
    assert lines[-2] == "plain-seed0 failed; the others are stopped and save their states"
    assert lines[-1].startswith("error: ")
    assert lines[-1].count(" | ") == 2
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("code", "line", "kind", "expected"),
    [
        (3, "error: no such data | x | give", "DataError", "no such data | x | give"),
        (1, "error: pillow is missing | x | install", "PackageError", "pillow is missing | x | install"),
        (1, "Traceback", "SelkernError", "the run a-seed0 ended with code 1"),
        (-9, "", "ResourceError", "the run a-seed0 was killed (signal 9)"),
    ],
)
def test_every_end_of_a_run_has_its_error(code: int, line: str, kind: str, expected: str, tmp_path: Path) -> None:
    folder = tmp_path / "a-seed0"
    folder.mkdir()
    output_file(folder).write_text(f"before\n{line}\n")
    with pytest.raises(SelkernError) as caught:
        require_success(folder, code)
    assert type(caught.value).__name__ == kind
    assert str(caught.value).startswith(expected)
    with pytest.raises(Interrupted):
        require_success(folder, 143)
    require_success(folder, 0)


def test_two_calls_do_not_work_in_one_folder(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conducting, "_LOCK_PATIENCE", 0.1)
    root = tmp_path / "runs" / "small"
    root.mkdir(parents=True)
    with conducting._alone(root), pytest.raises(UsageError, match="another study is at work"):
        conduct(options(file, tmp_path))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["smal"], "error: no such study | smal"),
        (["--short"], "error: no study is named | selkern study | "),
        ([""], "error: no study is named | selkern study | "),
        (["small", "--jobs", "0"], "error: jobs is 0 | --jobs | must be from 1 to 1024"),
        (["small", "--address", "auto"], "error: an address without a cluster | --address"),
        (["small", "--data", "x"], "error: the study names its data itself"),
    ],
)
def test_mistakes_on_the_command_line(
    words: Sequence[str], expected: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    assert main(["study", *(str(file) if word == "small" else word for word in words)]) == 2
    assert capsys.readouterr().err.startswith(expected)


def test_without_a_name_the_studies_of_the_package_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study"]) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert "mixers         Plain, SE, summed and selected branches at equal cost, on digit scenes" in lines


def test_measured_costs_are_told_beside_the_accuracy_and_drawn(done: Conducted, file: Path) -> None:
    measured = measure(read(file), classes=10, threads=1, rounds=3)
    assert list(measured) == list(ARMS)
    assert measured["sk"]["held_mib"] > measured["plain"]["held_mib"] > 0  # two branches keep more than one
    for result in measured.values():
        for kind in ("inference_ms", "training_ms"):
            assert 0 < result[kind]["low"] <= result[kind]["median"] <= result[kind]["high"]
    results = copy.deepcopy(done.results)
    results["circumstances"]["measured"] = measured
    top1 = results["arms"]["plain"]["top1"]["mean"]
    assert f"| plain | {top1:.2%} | {measured['plain']['inference_ms']['median']:.3f} (" in render(results)
    assert len(draw(results).axes) == 2 + 1 + 3  # seeds and differences; scales; three costs
