"""What the programs set before they compute: it changes no number, it can be switched off, and it never fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import ENVIRONMENT

from selkern import tuning
from selkern.errors import UsageError
from selkern.models.registry import create_model

STEPS = """
import torch, selkern
from selkern.tuning import tune

def train():
    torch.manual_seed(0)
    model = selkern.create_model("sknet_mini", num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 48, 48)), torch.arange(4)).backward()
        optimizer.step()
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())

before, threads = train(), torch.get_num_threads()
tuned = tune()
print(tuned.allocator.changed or tuned.allocator.why, threads == torch.get_num_threads(), train() == before)
"""


@pytest.fixture
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process whose environment says nothing, and where nothing that is set stays set."""
    monkeypatch.setattr(tuning, "_done", None)
    for name in (tuning.SWITCH, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLIBC_TUNABLES", "LD_PRELOAD", *tuning._MALLOC):
        monkeypatch.delenv(name, raising=False)


def test_training_is_the_same_bit_for_bit() -> None:
    clean = {key: value for key, value in ENVIRONMENT.items() if key != tuning.SWITCH}
    done = subprocess.run([sys.executable, "-c", STEPS], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["True", "True"]


@pytest.mark.parametrize(
    ("switch", "allocator", "threads"),
    [
        ("off", True, True),
        ("no-allocator", True, False),
        ("no-threads", False, True),
        ("no-allocator, no-threads", True, True),
        ("", False, False),
        ("on", False, False),
    ],
)
def test_the_switch(switch: str, allocator: bool, threads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.SWITCH, switch)
    assert (tuning.switched_off("allocator"), tuning.switched_off("threads")) == (allocator, threads)


@pytest.mark.usefixtures("untuned")
def test_switched_off_it_sets_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.SWITCH, "off")
    monkeypatch.setattr(tuning, "cgroup_quota", lambda: 0.5)
    torch.set_num_threads(2)
    tuned = tuning.tune()
    assert torch.get_num_threads() == 2
    assert not tuned.allocator.changed
    assert not tuned.threads.changed
    assert "SELKERN_TUNING=off" in tuned.allocator.why
    assert "SELKERN_TUNING=off" in tuned.threads.why


@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize(
    ("quota", "before", "after"), [(None, 3, 3), (1.0, 3, 1), (1.5, 3, 2), (0.2, 3, 1), (64.0, 3, 3), (2.0, 1, 1)]
)
def test_threads_are_only_ever_lowered_to_a_quota(
    quota: float | None, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)), raising=False)
    torch.set_num_threads(before)
    setting = tuning._tune_threads()
    assert torch.get_num_threads() == after
    assert setting.value == str(after)
    assert setting.changed == (before != after)


@pytest.mark.usefixtures("untuned")
def test_training_keeps_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "cgroup_quota", lambda: 1.0)
    torch.set_num_threads(2)
    assert not tuning.tune(training=True).threads.changed
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("untuned")
def test_the_user_s_threads_hold_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    tuning.tune()
    assert tuning.tune(threads=2).threads == tuning.Setting("2", "--threads 2", changed=True)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads_out_of_range_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match="must be from 1 to 1024"):
        tuning.check_threads(threads)


class Work:
    """Work whose seconds an image are known for each number of threads, and the clock that it moves."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now = seconds, 0.0
        self.counts: list[int] = []

    def __call__(self, images: int) -> None:
        self.counts.append(torch.get_num_threads())
        self.now += images * self.seconds[torch.get_num_threads()]

    def choose(self, images: int) -> tuning.Threads | None:
        return tuning.choose_threads(self, images, clock=lambda: self.now)


@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        ({4: 0.005, 2: 0.008, 1: 0.014}, 4),  # quiet
        ({4: 0.020, 2: 0.012, 1: 0.008}, 1),  # busy
        ({4: 0.020, 2: 0.008, 1: 0.014}, 2),
        ({4: 0.0082, 2: 0.008, 1: 0.009}, 4),  # as fast, within noise
    ],
)
def test_the_fastest_count_is_taken_in_under_three_seconds(seconds: dict[int, float], count: int) -> None:
    torch.set_num_threads(4)
    work = Work(seconds)
    chosen = work.choose(100_000)
    assert chosen is not None
    assert torch.get_num_threads() == chosen.count == count
    assert work.now < 3
    assert chosen.rates[count] == pytest.approx(1 / seconds[count])
    assert f"{1 / seconds[count]:.0f} images/s" in str(chosen)


@pytest.mark.usefixtures("untuned")
def test_long_steps_are_measured_in_under_three_seconds_or_not_at_all() -> None:
    torch.set_num_threads(2)
    work = Work({2: 0.2, 1: 0.3})
    assert work.choose(1000) is not None
    assert work.now < 3
    assert work.counts == [2, 2, *[2, 1] * ((len(work.counts) - 2) // 2)], "in turn"
    torch.set_num_threads(2)
    work = Work({2: 1.0, 1: 1.5})
    assert work.choose(1000) is None
    assert work.now < 3
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("untuned")
def test_small_work_is_not_measured() -> None:
    torch.set_num_threads(2)
    work = Work({2: 0.005, 1: 0.008})
    assert work.choose(1000) is None
    assert work.now == pytest.approx(4 * 0.005)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", tuning.SWITCH, ""])
def test_what_decides_already_is_not_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2 if name else 1)
    if name:
        monkeypatch.setenv(name, "off" if name == tuning.SWITCH else "2")
    work = Work({})
    assert work.choose(100_000) is None
    assert not work.counts


@pytest.mark.usefixtures("untuned", "tiny_networks")
def test_a_measurement_changes_no_weight_and_no_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_WORTH", 0.0)
    monkeypatch.setattr(tuning, "_LONGEST", 60.0)
    monkeypatch.setattr(tuning, "_BUDGET", 0.01)
    model = create_model("sk_tiny", num_classes=3)
    model.eval()
    torch.set_num_threads(2)
    before = [value.clone() for value in model.state_dict().values()], torch.get_rng_state()
    for training in (True, False):
        torch.set_num_threads(2)
        assert tuning.measured_threads(model, 16, 1000, training=training, batch=2) is not None
    assert all(map(torch.equal, before[0], model.state_dict().values()))
    assert torch.equal(before[1], torch.get_rng_state())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_fall_of_the_speed_is_said_once() -> None:
    pace = tuning.Pace()
    pace.restart(0.0)
    assert pace.slowed(2000, 10.0) == ""
    pace.restart(100.0)  # a validation lay between
    assert pace.slowed(1900, 110.0) == ""
    assert pace.slowed(300, 115.0) == "", "too short to judge"
    assert pace.slowed(270, 120.0) == "the machine is busy: 57 images/s, 200 at the start"
    assert pace.slowed(500, 130.0) == ""


@pytest.mark.usefixtures("untuned")
def test_omp_num_threads_is_never_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "cgroup_quota", lambda: 1.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    assert tuning._tune_threads().why == "OMP_NUM_THREADS=3"
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None),
        ({"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu.max": "garbage"}, None),
        ({"cpu.max": "1000 0"}, None),
        ({}, None),
    ],
)
def test_quotas_of_both_kinds_of_cgroups(files: dict[str, str], cores: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert tuning._quota_of(tmp_path) == cores


def test_the_tightest_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, quota in (("", "800000 100000"), ("a", "200000 100000"), ("a/b", "max 100000")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "cpu.max").write_text(quota)
    monkeypatch.setattr(tuning, "_CGROUP", tmp_path)
    monkeypatch.setattr(tuning, "_groups", lambda: [tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "none"])
    assert tuning.cgroup_quota() == 2.0


@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "4096", "MALLOC_MMAP_THRESHOLD_"),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", "GLIBC_TUNABLES"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2", "LD_PRELOAD"),
    ],
)
def test_an_allocator_that_the_user_chose_is_left_alone(
    name: str, value: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("must not be touched"))
    setting = tuning._tune_allocator()
    assert part in setting.why
    assert not setting.changed


def no_confstr(name: str) -> str:
    raise ValueError(f"unrecognized configuration name {name}")


class Refusing:
    """A C library whose mallopt takes nothing, or only what old ones take."""

    def __init__(self, most: int) -> None:
        self.mallopt: Callable[[int, int], int] = lambda _, size: int(size <= most)


@pytest.mark.usefixtures("untuned")
@pytest.mark.skipif(not hasattr(os, "confstr"), reason="no confstr here")
def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", no_confstr)
    assert tuning._tune_allocator() == tuning.Setting("as the system has it", "no glibc here")
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.17")
    monkeypatch.setattr("ctypes.CDLL", lambda _: Refusing(0))
    assert "refused" in tuning._tune_allocator().why
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert tuning._tune_allocator().why == "no glibc here"


def test_it_is_done_once() -> None:
    first = tuning.tune()
    assert tuning.tune() is first


def test_the_doctor_speaks_json_and_finds_what_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "selkern.cli", "doctor", "--json"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    reported = json.loads(done.stdout)
    assert reported["torch"]["value"] == torch.__version__
    assert reported["threads"] == {"name": "threads", "value": "1", "note": "OMP_NUM_THREADS=1"}
    assert reported["pillow"]["note"] == "extra train"
    assert "images/s" in reported["decoding"]["value"]
    assert "GFLOP/s" in reported["convolution"]["value"]
    assert not [name for name, finding in reported.items() if finding["value"] == "failed"]
    assert str(Path(__file__).parents[1]) not in done.stdout, "no paths"


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
BLOCKED = %r
import selkern.cli
print(selkern.cli.main(["doctor"]))
"""


def test_the_doctor_lives_without_anything_optional() -> None:
    absent = ["tyro", "PIL", "sklearn", "pyarrow", "yaml", "tqdm", "matplotlib", "jinja2", "google", "timm"]
    program = BLOCKED % [*absent, "huggingface_hub"]
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.rstrip().endswith("\n0")
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    for package in ("tyro", "pillow", "timm", "protobuf", "matplotlib"):
        assert "missing" in lines[package]
        assert "pip install 'selkern[" in lines[package]
    assert "failed" in lines["decoding"]
