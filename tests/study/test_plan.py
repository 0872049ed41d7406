"""A study's file: strict, with every mistake one line; and the files in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_study import CODE, PLAIN, TRUNK, write

from selkern.errors import CheckpointError, UsageError
from selkern.layers.selective_kernel import Branch
from selkern.models.trunk import Architecture
from selkern.study.plan import FOLDER, costs, find, read
from selkern.study.run import tasks_of
from selkern.train.network import bare

FILES = sorted(FOLDER.glob("*.yaml"))
SK = f"  sk: {{model: sknet_mini, change: {{{TRUNK}}}}}"


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_studies_of_the_repository_hold_their_own_conditions(path: Path) -> None:
    study = read(path, "digits" if path.stem == "cifar" else None)
    assert study.seeds >= (3 if path.stem == "cifar" else 5)
    result = costs(study)  # raises where a match does not hold
    if path.stem in ("mixers", "cifar", "scale"):
        assert (study.match.parameters, study.match.macs) == (0.02, 0.02)
        base = result[study.baseline]
        assert all(abs(cost.parameters / base.parameters - 1) < 0.02 for cost in result.values())
        assert all(abs(cost.macs / base.macs - 1) < 0.02 for cost in result.values())
    rows = [arm.row for arm in study.arms if arm.options.data == study.arms[0].options.data]
    assert all(rows.count(row) == 1 for row in rows), "two arms are the same network"


def test_all_studies_are_there() -> None:
    names = {path.stem for path in FILES}
    assert names == {"mixers", "cifar", "branches", "second_branch", "gate", "scale", "cost", "selection"}


def test_kernels_of_every_form(tmp_path: Path) -> None:
    kernels = "kernels: [3, {kernel_size: 5, groups: 4}, {kernel_size: 3, dilation: 3}], min_width: [8, 16]"
    study = read(write(tmp_path, (SK, SK.replace("min_width: 8", kernels))))
    row = study.arms[0].row
    assert isinstance(row, Architecture)
    assert row.kernels == (3, Branch(5, groups=4), Branch(3, dilation=3))
    assert row.min_width == (8, 16)
    assert study.arms[0].options.model.startswith('sknet_mini(depths=[1,1], groups=2, kernels=[3,{"kernel_size":5,')


def test_runs_go_seed_by_seed_and_share_their_options(tmp_path: Path) -> None:
    tasks = list(tasks_of(read(write(tmp_path)), threads=1))
    assert [task.name for task in tasks] == ["sk-seed0", "plain-seed0", "sk-seed1", "plain-seed1"]
    assert [task.options["seed"] for task in tasks] == [0, 0, 1, 1]
    shared = [{k: v for k, v in task.options.items() if k not in ("model", "seed")} for task in tasks]
    assert all(options == shared[0] for options in shared)


def test_the_short_form(tmp_path: Path) -> None:
    study = read(write(tmp_path, ("data: digits:train=48,val=16,test=40", "data: null")), short=True)
    assert study.seeds == 2
    options = study.arms[0].options
    assert (options.data, options.training.epochs) == ("digits:train=256,val=64,test=96", 1)


OWN = """
  own: {model: "mine.py:net", with: "8", weights: first.safetensors}
  own_sk: {model: "mine.py:net", with: "8", weights: first.safetensors, selectify: "1.0"}
  plain: {model: resnet_mini}
  plain_sk: {model: resnet_mini, selectify: "stages.2.0"}"""


def test_code_weights_and_units_of_selectify_are_arms(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    torch.manual_seed(0)
    first = bare(f"{tmp_path}/mine.py:net", 10, 16, "8").state_dict()
    save_file(first, tmp_path / "first.safetensors")
    study = read(write(tmp_path, (PLAIN, OWN.strip("\n"))))
    arms = {arm.name: arm for arm in study.arms}
    assert arms["own"].options.model == f"{tmp_path}/mine.py:net"
    assert arms["own"].options.weights == f"{tmp_path}/first.safetensors"
    cost = costs(study)
    convolutions = 3 * 8 * 9 + 8 + 8 * 16 * 9 + 16
    assert cost["own"].parameters == convolutions + 2 * (8 + 16) + 16 * 10 + 10
    assert cost["own_sk"].parameters > cost["own"].parameters
    assert cost["own_sk"].macs > cost["own"].macs
    assert cost["plain_sk"].parameters > cost["plain"].parameters
    options = next(task.options for task in tasks_of(study, threads=1) if task.arm == "own_sk")
    assert (options["selectify"], options["arguments"]) == ("1.0", "8")


@pytest.mark.parametrize(("tensors", "message"), [(None, "no such run"), ({"x": torch.zeros(1)}, "in its own names")])
def test_weights_that_do_not_fit_are_known_before_any_training(
    tensors: dict[str, torch.Tensor] | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    if tensors is not None:
        save_file(tensors, tmp_path / "w.safetensors")
    name = "nothing" if tensors is None else "w.safetensors"
    path = write(tmp_path, (PLAIN, f"  plain: {{model: 'mine.py:net', with: '8', weights: {name}}}"))
    with pytest.raises(CheckpointError, match=message) as error:
        costs(read(path))
    assert f"{path}, arm plain" in str(error.value)


MISTAKES = {
    "change of code": (PLAIN, "  plain: {model: 'm.py:net', change: {stem: 8}}", "code has no fields that could be"),
    "with as a mapping": (
        PLAIN,
        "  plain: {model: 'm.py:net', with: {width: 8}}",
        "option with has a value of a wrong",
    ),
    "with of ours": (PLAIN, "  plain: {model: resnet_mini, with: '8'}", "`with` is for code, timm:NAME or FILE.py"),
    "unknown entry": ("seeds: 2", "sedes: 2", "unknown option 'sedes' | {path} | did you mean seeds?"),
    "no claim": ("claim: none", "", "claim is missing | {path}"),
    "no data": ("data: digits:train=48,val=16,test=40", "data: null", "the study leaves its data open | {path}"),
    "wrong type": ("seeds: 2", "seeds: many", "option seeds has a value of a wrong type: 'many' | {path}"),
    "no seeds": ("seeds: 2", "seeds: 0", "seeds is 0 | {path}"),
    "twice": ("seeds: 2", "seeds: 2\nseeds: 3", "'seeds' is there twice | {path}"),
    "alias": ("title: Small\nclaim: none", "title: &t Small\nclaim: *t", "an alias | {path}"),
    "no YAML": ("seeds: 2", "seeds: [2", "not YAML"),
    "baseline": ("baseline: sk", "baseline: sq", "the baseline 'sq' is no arm | {path} | one of sk, plain"),
    "recipe": ("recipe: digits", "recipe: digit", "unknown recipe 'digit'"),
    "training": ("epochs: 2", "epochs: 0", "epochs is 0 | {path} | must be at least 1"),
    "unknown training": ("epochs: 2", "epoch: 2", "unknown option 'epoch' | {path} | did you mean epochs?"),
    "arm's name": ("  sk: {", "  s/k: {", "the baseline 'sk' is no arm"),
    "folder as a name": ("  plain: {", "  ../up: {", "an arm is called '../up'"),
    "model": ("model: resnet_mini", "model: resnet_mimi", "unknown model 'resnet_mimi'"),
    "code": ("title: Small", "title: !!python/object/apply:os.getcwd []", "not YAML"),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=list(MISTAKES))
def test_a_mistake_in_the_file_is_one_line(mistake: str, tmp_path: Path) -> None:
    old, new, expected = MISTAKES[mistake]
    path = write(tmp_path, (old, new))
    with pytest.raises(UsageError) as caught:
        read(path)
    assert str(caught.value).startswith(expected.format(path=path))
    assert "\n" not in str(caught.value)


CHANGES = {
    "kernel: 3": "unknown field 'kernel'",
    "kernels: 3": "kernels is 3",
    "kernels: [4]": "must be odd",
    "kernels: [{size: 3}]": "a kernel is",
    "groups: 0": "a size of the network is out of range",
    "groups: 3": "groups",
    "mixer: max": "unknown mixer 'max'",
    "depths: [1]": "one depth, mid, out and stride per stage",
    "min_width: [8]": "min_width has 1 numbers",
}


@pytest.mark.parametrize("change", CHANGES, ids=list(CHANGES))
def test_a_network_that_cannot_be_is_told_with_its_arm(change: str, tmp_path: Path) -> None:
    path = write(tmp_path, (SK, f"  sk: {{model: sknet_mini, change: {{{change}}}}}"))
    with pytest.raises(UsageError, match=CHANGES[change]) as caught:
        costs(read(path))
    assert f"{path}, arm sk" in str(caught.value)


def test_costs_that_do_not_match_are_told_before_any_training(tmp_path: Path) -> None:
    path = write(tmp_path, ("seeds: 2", "seeds: 2\nmatch: {parameters: 0.02}"))
    with pytest.raises(
        UsageError, match=r"arm plain has 3,\d+ parameters, -\d+\.\d% of sk's \d,\d+ . .*2% are allowed"
    ):
        costs(read(path))
    costs(read(write(tmp_path, ("seeds: 2", "seeds: 2\nmatch: {parameters: 0.9, macs: 0.9}"))))


def test_a_study_is_a_file_or_one_that_the_package_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no checkout
    path = write(tmp_path)
    assert find(os.fspath(path)) == path
    assert find("mixers") == FOLDER / "mixers.yaml"
    path.rename("mixers")
    assert find("mixers") == Path("mixers")


@pytest.mark.parametrize(("name", "guess"), [("mixer", "did you mean mixers? "), ("zzz", ""), ("../plans/mixers", "")])
def test_an_unknown_study_is_answered_with_the_names(name: str, guess: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(name)
    names = "branches, cifar, cost, gate, mixers, scale, second_branch, selection"
    assert str(caught.value) == f"no such study | {name} | {guess}give a .yaml file or one of {names}"
