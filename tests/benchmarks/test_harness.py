"""The CPU harness of benchmarks/: variants in turn, like with like, with everything that is missing named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shim import timm_or_skip
from tiny import ENVIRONMENT
from torch import nn

import selkern
from benchmarks import goals as names
from benchmarks import layers, networks, peers, pipeline, processes, run, table
from benchmarks.goals import GOALS
from benchmarks.results import Goal, Results, Row, judge
from benchmarks.session import Session
from selkern.errors import PackageError
from selkern.measure.bench import forward, in_layouts

timm_or_skip()


def row(variant: str, *samples: float, against: str = "", **more: Any) -> Row:
    given = {"workload": "infer", "case": "c", "quantity": "forward", "unit": "ms", **more}
    return Row(variant=variant, samples=samples, against=against, **given)


# Peers


def test_every_peer_computes_what_ours_does() -> None:
    unit, x = selkern.SelectiveKernel(32, reduction=2).eval(), torch.randn(2, 32, 8, 8)
    peers.vary_norms(unit)
    for theirs in (peers.timm_unit(unit), peers.Stacked(unit)):
        torch.testing.assert_close(theirs(x), unit(x))
    module, x = selkern.SKAttention(8, (1, 3), reduction=4, group=2, L=3).eval(), torch.randn(2, 8, 5, 5)
    peers.vary_norms(module)
    torch.testing.assert_close(peers.article_module(module)(x), module(x))


def test_the_bare_convolutions_are_all_of_them_and_nothing_else() -> None:
    model = selkern.create_model("sknet_mini", num_classes=10).eval()
    bare = peers.BareConvolutions(model, torch.randn(2, 3, 32, 32))
    assert len(bare.calls) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    with torch.profiler.profile() as profile:
        bare()
    counts = Counter(event.name for event in profile.events())
    assert counts["aten::conv2d"] == len(bare.calls)
    assert not counts["aten::batch_norm"]
    assert not model.stages[0]._forward_pre_hooks


def test_a_variant_that_computes_something_else_is_not_timed() -> None:
    session = Session(rounds=1)
    model, x = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4)
    compare = session.compare("layer", "c", "forward", expected=model(x).detach())
    compare.offer("right", lambda: in_layouts(model, x, forward))
    compare.offer("wrong", lambda: in_layouts(nn.Conv2d(3, 4, 1), x, forward))
    compare.offer("shape", lambda: in_layouts(nn.Conv2d(3, 5, 1), x, forward))
    compare.offer("nan", lambda: {"": lambda: forward(model, x) * torch.nan})  # type: ignore[operator]
    compare.run()
    assert [one.variant for one in session.results.rows] == ["right"]
    reasons = {entry.variant: entry.reason for entry in session.results.missing}
    assert "differs by" in reasons["wrong"]
    assert "instead of (1, 4, 4, 4)" in reasons["shape"]
    assert "differs by nan" in reasons["nan"]


def test_what_this_version_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(selkern._HOME, "fold")
    with pytest.raises(PackageError, match=r"selkern\.fold is not in this version"):
        peers.folded(nn.ReLU(), torch.ones(1))
    monkeypatch.setattr(peers, "_timm", PackageError("timm cannot be imported (x)", "timm", "y"))
    session = Session(trial=True, rounds=1)
    layers.layer(session)
    missing = {entry.variant for entry in session.results.missing}
    assert missing == {names.FOLDED, names.TIMM}
    text = table.render(session.results, judge(GOALS, session.results), "head")
    assert "layer    timm: timm cannot be imported (x) | timm | y" in text
    assert "against timm, missing" in text


# Goals


def test_the_goals_are_those_of_the_project() -> None:
    bounds = [(goal.number, goal.bound, goal.at_least) for goal in GOALS]
    assert bounds == [
        *((1, bound, True) for bound in (1.5, 2.0, 1.15)),
        (1, 1.10, False),
        (1, 1.8, True),
        (1, 99.9, True),
        *((2, 118, False), (2, 1.0, True), (2, 90, False), (2, 1.15, False)),
        *((3, bound, True) for bound in (2.5, 2.5, 1.3)),
        *[(3, 1.03, False)] * 3,
        *[(3, 1.2, True)] * 2,
        *[(3, 0.60, False)] * 2,
        *((4, 100, False), (4, 300, False)),
    ]


@pytest.mark.parametrize(
    ("form", "bound", "at_least", "word"),
    [
        ("speed-up", 2.0, True, "reached"),
        ("speed-up", 2.1, True, "missed"),
        ("share", 0.5, False, "reached"),
        ("share", 0.49, False, "missed"),
        ("value", 5.0, False, "reached"),
        ("value", 4.9, False, "missed"),
    ],
)
def test_verdicts(form: Any, bound: float, at_least: bool, word: str) -> None:
    results = Results([row("slow", 10, 10, 12), row("fast", 5, 5, 6, against="slow")])
    (verdict,) = judge([Goal(1, "infer", "c", "forward", "fast", "slow", form, bound, at_least)], results)
    assert verdict.word == word
    (absent,) = judge([Goal(1, "infer", "c", "forward", "none", "slow", form, bound, at_least)], results)
    assert absent.word == "not measured"


def test_better_is_above_one_whatever_is_measured() -> None:
    results = Results([row("base", 10), row("ours", 5, against="base"), row("alone", 1)])
    assert [results.advantage(one) and results.advantage(one).median for one in results.rows] == [None, 2, None]  # type: ignore[union-attr]
    results = Results([row("base", 10, more_is_better=True), row("ours", 5, against="base", more_is_better=True)])
    better = results.advantage(results.rows[1])
    assert better is not None
    assert better.median == 0.5


# Workloads, on small shapes


@pytest.fixture(scope="module")
def trial() -> Results:
    """The results of the workloads of layers and networks, children apart."""
    session = Session(trial=True, rounds=1, batches=(2,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "run_child", lambda *_: {"grown": 7.0})
        for workload in (layers.article, layers.layer, networks.infer, networks.train, networks.memory):
            torch.manual_seed(0)
            workload(session)
    return session.results


@pytest.mark.exhaustive
def test_nothing_is_missing_and_every_number_is_positive(trial: Results) -> None:
    assert trial.missing == []
    assert all(value > 0 for one in trial.rows for value in one.samples)
    assert all(one.unit and one.quantity and one.case for one in trial.rows)
    assert len({one.key for one in trial.rows}) == len(trial.rows)


@pytest.mark.exhaustive
def test_the_workloads_measure_what_the_goals_ask_for(trial: Results) -> None:
    measured = {(one.workload, one.quantity, one.variant) for one in trial.rows}
    asked = {
        (goal.workload, goal.quantity, variant)
        for goal in GOALS
        for variant in (goal.variant, goal.against)
        if variant and goal.workload != "start" and "compiled" not in variant
    }
    assert asked <= measured


@pytest.mark.exhaustive
def test_lean_training_holds_less_than_timm_s(trial: Results) -> None:
    held = {one.variant: one.samples[0] for one in trial.rows if (one.workload, one.quantity) == ("memory", names.HELD)}
    assert held[names.MEMORY["lean"]] < held[names.MEMORY["default"]] < held[names.MEMORY["plain"]] < held[names.TIMM]


@pytest.mark.exhaustive
def test_the_chart_is_a_picture_of_the_comparisons(trial: Results) -> None:
    from benchmarks import chart

    picture = chart.draw(trial, "foot")
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert chart.draw(Results([row("alone", 1)]), "foot") is None


def test_the_scaling_of_a_unit() -> None:
    session = Session(trial=True, rounds=1)
    layers.scaling(session)
    assert {one.case for one in session.results.rows} >= {"branches 2", "branches 3", "side 4", "batch 1"}
    assert session.results.missing == []


def test_the_data_pipeline() -> None:
    session = Session(trial=True, rounds=1)
    pipeline.data(session)
    assert len(session.results.rows) == 2 * len(pipeline.WORKERS)
    assert all(one.samples[0] > 0 and one.more_is_better for one in session.results.rows)
    assert session.results.missing == []


# Processes


def test_a_step_in_a_fresh_process_makes_it_grow() -> None:
    settings = {"variant": names.MEMORY["default"], "batch": 2, "trial": True}
    assert processes.run_child("memory", settings)["grown"] > 0


@pytest.mark.exhaustive
def test_two_ranks_train() -> None:
    assert processes._ranks(2, 8, 1) > 0


def test_a_child_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "environment", lambda **_: {"PATH": "", "PYTHONPATH": "", "PYTHONHOME": "nowhere"})
    session = Session(trial=True, rounds=1)
    networks.memory(session, ("no such network",))
    missing = [(entry.variant, entry.reason) for entry in session.results.missing]
    assert [variant for variant, _ in missing] == [f"no such network ({q})" for q in (names.HELD, names.GROWTH)]
    assert "unknown variant" in missing[0][1]
    assert "a child process ended with 1: " in missing[1][1]


def test_starting_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_IMPORT", "_IMPORT_ALL", "_IMPORT_TORCH"):  # the same without torch
        monkeypatch.setattr(processes, name, getattr(processes, name).replace("torch", "json"))
    monkeypatch.setattr(processes, "_IMPORT_ALL", "import time\nraise SystemExit('broken')")
    session = Session(trial=True)
    processes.start(session)
    measured = {one.quantity for one in session.results.rows}
    assert {goal.quantity for goal in GOALS if goal.workload == "start"} <= measured
    assert [entry.reason for entry in session.results.missing] == ["broken"]


# The command

BLOCK_TIMM = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "timm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from benchmarks.run import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.exhaustive
def test_the_command_without_timm(tmp_path: Path) -> None:
    words = ["layer", "--trial", "--rounds", "2", "--output", str(tmp_path / "results")]
    done = subprocess.run(
        [sys.executable, "-c", BLOCK_TIMM, *words], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    data = json.loads(lines[-1])
    assert data["missing"] == [
        {
            "workload": "layer",
            "variant": "timm",
            "reason": "timm cannot be imported (No module named 'timm') | timm | pip install 'selkern[timm]'",
        }
    ]
    assert "  layer    timm: timm cannot be imported (No module named 'timm')" in done.stdout
    assert len(data["goals"]) == len(GOALS)
    assert {goal["verdict"] for goal in data["goals"]} == {"not measured"}
    assert data["machine"]["threads"] == 1
    assert data["settings"]["trial"]
    assert all(len(one["samples"]) in (1, 2) for one in data["rows"])
    folder = tmp_path / "results" / "bench"
    assert sorted(path.name for path in folder.iterdir()) == ["chart.png", "results.json", "table.txt"]
    assert json.loads((folder / "results.json").read_text()) == data
    assert (folder / "table.txt").read_text().strip() in done.stdout
    inside = json.dumps(data)
    assert str(tmp_path) not in inside
    assert str(Path(__file__).parents[2]) not in inside


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The workloads do nothing but leave their names here."""
    ran: list[str] = []

    def stub(name: str) -> Callable[[Session], None]:
        return lambda _: ran.append(name)

    for name in run.WORKLOADS:
        monkeypatch.setitem(run.WORKLOADS, name, stub(name))
    return ran


def test_which_workloads_run(no_work: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        ([], list(run.SHORT)),
        (["data", "article"], ["article", "data"]),
        (["all"], list(run.WORKLOADS)),
    ):
        no_work.clear()
        assert run.main([*words, "--json", "--output", str(tmp_path)]) == 0
        assert no_work == expected
        (line,) = capsys.readouterr().out.splitlines()
        assert json.loads(line)["settings"]["workloads"] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench", "bench-2", "bench-3"]


def test_what_was_measured_before_an_error_and_before_ctrl_c_is_kept(
    no_work: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(session: Session) -> None:
        session.results.rows.append(row("some", 1.0))
        raise RuntimeError("no memory left")

    def stop(_: Session) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(run.WORKLOADS, "article", fail)
    monkeypatch.setitem(run.WORKLOADS, "train", stop)
    assert run.main(["all", "--json", "--output", str(tmp_path)]) == 130
    data = json.loads(capsys.readouterr().out)
    assert no_work == ["start", "layer", "infer"]
    assert data["settings"]["stopped_in"] == "train"
    assert [one["variant"] for one in data["rows"]] == ["some"]
    assert [(entry["workload"], entry["reason"]) for entry in data["missing"]] == [
        ("article", "no memory left"),
        ("train", "stopped"),
    ]
    assert json.loads((tmp_path / "bench" / "results.json").read_text()) == data


def test_threads_are_those_asked_for(no_work: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["data", "--threads", "2", "--json", "--output", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["threads"] == 2
    assert no_work == ["data"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--rounds", "0"], "--rounds"),
        (["--budget", "0"], "--budget"),
        (["--batches", "0"], "--batches"),
        (["--threads", "0"], "--threads"),
        (["lyer"], "lyer"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(words)
    assert stop.value.code == 2
    assert part in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_cannot_be_made(no_work: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run.main(["data", "--output", str(tmp_path / "file")]) == 5
    assert "give another --output" in capsys.readouterr().err
    assert no_work == []


def test_without_matplotlib_there_is_no_chart_and_a_word_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.chart", None)
    with pytest.raises(PackageError, match="matplotlib cannot be imported"):
        run.write_chart(tmp_path, Results(), "foot")
