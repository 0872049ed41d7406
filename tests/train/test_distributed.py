"""Two ranks under torchrun see what one process sees: the same images in the same steps, each counted once."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ENVIRONMENT, draw, make_folder, make_options, order_of, rows, tiny_model, train
from torch import distributed as dist

from selkern import cli
from selkern.errors import CheckpointError, ResourceError, UsageError
from selkern.evaluation import evaluate
from selkern.inference.images import choose_images
from selkern.inference.network import load
from selkern.train import run as job
from selkern.train.distributed import Ranks, _meet, join, pick_device
from selkern.train.progress import Tally
from selkern.train.run_folder import RunFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images to train on and 7 to validate, which two ranks cannot share evenly."""
    root = tmp_path_factory.mktemp("data")
    make_folder(root / "train", images=10)
    for number in range(7):
        draw(root / "val" / ("cat" if number < 4 else "dog") / f"{number}.png", number % 3, 50 + number)
    return root


@pytest.fixture(scope="module")
def two_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    output = tmp_path_factory.mktemp("runs")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "selkern.cli", "train"]
    words += ["--data", str(data), "--output", str(output), "--name", "two", "--device", "cpu", "--log-order"]
    words += [
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--accumulate",
        "2",
        "--image-size",
        "16",
        "--ema",
        "0.5",
        "--no-report",
    ]
    done = subprocess.run(
        [sys.executable, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("selkern evaluate") == 1, "rank 0 alone speaks"
    assert [path.name for path in output.iterdir() if path.is_dir()] == ["two"]
    return RunFolder(output / "two")


@pytest.mark.exhaustive
def test_the_merged_order_is_that_of_one_process(data: Path, two_ranks: RunFolder, tmp_path: Path) -> None:
    with tiny_model():
        options = make_options(data, tmp_path, model="sk_tiny", epochs=2, batch_size=8, log_order=True)
        alone = order_of(train(options).path / "order.rank0.csv")
    ranks = [order_of(two_ranks.path / f"order.rank{rank}.csv") for rank in range(2)]
    assert len(alone) == 2 * 2 * 8
    for epoch in range(2):
        for step in range(2):
            batch, *shares = (table[(table[:, 0] == epoch) & (table[:, 1] == step), 2] for table in (alone, *ranks))
            assert len(batch) == 8
            for rank, share in enumerate(shares):
                assert share.tolist() == batch[rank::2].tolist()


@pytest.mark.exhaustive
def test_two_machines_are_two_ranks_of_one(data: Path, two_ranks: RunFolder, tmp_path: Path) -> None:
    """The form of docs/imagenet.md for several machines: a torchrun for each, which meet at an address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    words = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", place, "--rdzv-id", "two", "-m", "selkern.cli", "train"]
    words += ["--data", str(data), "--output", str(tmp_path), "--name", "two", "--device", "cpu", "--no-report"]
    words += ["--epochs", "2", "--batch-size", "8", "--accumulate", "2", "--image-size", "16", "--ema", "0.5"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    machines = [subprocess.Popen([sys.executable, *words], env=ENVIRONMENT, **pipes) for _ in range(2)]
    said = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert sum(text.count("selkern evaluate") for text in said) == 1, "rank 0 alone speaks"
    assert rows(RunFolder(tmp_path / "two")) == rows(two_ranks)


@pytest.mark.exhaustive
def test_ranks_leave_without_an_abort(tmp_path: Path) -> None:
    """Eight pairs of ranks at once, so that the cores are busy: one pair in four was aborted when Python ended."""
    program = tmp_path / "exchange.py"
    program.write_text(
        "from selkern.train.distributed import join\n"
        "with join('cpu') as ranks:\n"
        "    for step in range(20):\n"
        "        assert ranks.gather([step] * 200) == [[step] * 200] * 2\n"
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    pairs = [subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    errors = [pair.communicate(timeout=300)[1] for pair in pairs]
    assert not any(pair.returncode for pair in pairs), "\n".join(errors)


def test_ranks_meet_anew_in_a_store_that_remembers_dead_ones() -> None:
    """torchrun's ranks share one store over all its restarts, and machines count those differently."""
    store = dist.HashStore()
    store.set("selkern-came-1", "a rank that is dead")
    names = []
    for _ in range(3):
        with ThreadPoolExecutor() as pool:
            ranks = [pool.submit(_meet, store, rank, 3, timedelta(seconds=20)) for rank in (0, 1, 2)]
        one, *others = (rank.result() for rank in ranks)
        assert others == [one, one]
        names.append(one)
    assert len({*names}) == 3
    with pytest.raises(ResourceError, match=r"process 1 of 2 has not come .*--timeout-minutes"):
        _meet(dist.PrefixStore("other", store), 0, 2, timedelta(seconds=0.2))


@pytest.mark.parametrize("minutes", ["0", "-1", "1e9", "nan"])
def test_a_timeout_that_cannot_be_is_told(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "--timeout-minutes", minutes], ["train", "--resume", "x", "--timeout-minutes", minutes]):
        assert cli.main(words) == 2
        assert " | --timeout-minutes | must be above 0, and at most 10,000" in capsys.readouterr().err


def test_processes_that_read_another_state_do_not_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a network drive still shows one of them the state before: weights would drift apart unseen."""
    gather = Ranks.gather

    def with_another(self: Ranks, value: Any) -> list[Any]:
        state = isinstance(value, tuple) and isinstance(value[1], bytes)
        return [*gather(self, value), *([("step-000001", b"{}")] if state else [])]

    with tiny_model():
        run = train(make_options(data, tmp_path, model="sk_tiny", epochs=1, batch_size=8))
        monkeypatch.setattr(Ranks, "gather", with_another)
        with pytest.raises(CheckpointError, match=r"process 1 reads step-000001, process 0 another step-000002"):
            job.resume(run, "cpu", epochs=2, extend="rescale")


def test_every_validation_image_counts_once(two_ranks: RunFolder) -> None:
    """The figures of the last epoch are those of its weights, measured in one process."""
    loaded = load(str(two_ranks.last))
    source = choose_images(load(str(two_ranks.path))).source
    result = evaluate(loaded.model, source.val, source.classes, loaded.preprocess)
    assert len(result) == 7
    last = rows(two_ranks)[-1]
    assert (last["val_top1"], last["val_top5"]) == (result.top1, result.top5)
    assert last["val_loss"] == pytest.approx(result.loss, rel=1e-6)


def test_both_ranks_trained_on_every_batch(two_ranks: RunFolder) -> None:
    """train_top1 is a share of all 16 images of an epoch's two steps."""
    for row in rows(two_ranks):
        assert row["train_top1"] * 16 == pytest.approx(round(row["train_top1"] * 16))
        assert row["step"] == row["epoch"] * 2


def test_tallies_merge_to_the_sums_and_the_longest_time() -> None:
    merged = Tally.merge([Tally(1.5, 2, 4, 10.0), Tally(0.5, 1, 3, 12.0)])
    assert merged == Tally(2.0, 3, 7, 12.0)
    assert Tally.merge([merged]) == merged


def test_one_process_exchanges_nothing() -> None:
    with join("cpu") as ranks:
        assert (ranks.rank, ranks.world, ranks.main) == (0, 1, True)
        assert ranks.gather("x") == ["x"]
        assert ranks.from_main(3) == 3
        assert ranks.maximum(2) == 2
    assert not Ranks(1, 2, torch.device("cpu")).main


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "", "meta meta"])
def test_a_device_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(UsageError, match="--device") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_auto_takes_what_is_there() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
