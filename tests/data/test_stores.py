"""Shards on a web server: every image comes, however the server fails; where it cannot, one line says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_store import StoreServer, serving
from shard_files import photos

from selkern import cli
from selkern.data import local_copy, stores
from selkern.data.check import check_data
from selkern.data.loader import Samples, make_loader
from selkern.data.order import TrainOrder
from selkern.data.pack import pack_shards
from selkern.data.preprocess import Preprocess
from selkern.data.shard_names import expand
from selkern.data.sources import Source, open_source
from selkern.data.table_options import TableOptions
from selkern.errors import DataError, PackageError, ResourceError, SelkernError
from selkern.train import run
from selkern.train.options import TrainOptions
from selkern.train.recipe import Recipe
from selkern.train.run_folder import RunFolder

pytest.importorskip("aiohttp", reason="needs the extra remote")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stores")
    target = place / "shards"
    pack_shards(open_source(str(photos(place / "photos")), cut=False), target, 20_000, seed=0)
    return target


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAITS", (0.01,) * 9)


@pytest.fixture
def server(shards: Path) -> Iterator[StoreServer]:
    with serving(shards) as served:
        yield served


def address(served: StoreServer) -> str:
    """All of its shards."""
    counts = {name: len(list(served.root.glob(f"{name}-*.tar"))) for name in ("train", "val")}
    return "::".join(f"{served.address}/{name}-{{000000..{count - 1:06}}}.tar" for name, count in counts.items())


def batches(source: Source, workers: int) -> list[torch.Tensor]:
    samples = Samples(source.train, Preprocess(size=16), None, 0)
    result = []
    for batch in make_loader(samples, TrainOrder(len(source.train), 10, 0), workers):
        assert not batch.bad
        assert batch.gone is None
        result.append(batch.images)
    return result


def test_the_images_are_those_of_this_machine(server: StoreServer, shards: Path) -> None:
    far, near = open_source(address(server)), open_source(str(shards))
    assert far.classes == near.classes == ("cat", "dog")
    rows = list(far.split_rows())
    assert rows == list(near.split_rows())
    assert far.train.where(0) == f"{server.address}/{rows[0][0]}"
    assert all(map(torch.equal, batches(far, 0), batches(near, 0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_comes_whatever_fails(
    shards: Path, seed: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = batches(open_source(str(shards)), 0)
    with serving(shards, seed=seed, share=0.3, latency=0.001) as served:
        monkeypatch.setenv("SELKERN_CACHE", str(tmp_path))
        source = open_source(address(served))
        assert all(map(torch.equal, batches(source, workers), whole))
        assert sum(served.faults.values()) - served.faults["none"] > 10, served.faults


def test_a_batch_is_fetched_at_once(shards: Path) -> None:
    import time

    with serving(shards) as served:
        source = open_source(address(served))
        served.latency = 0.05
        started = time.monotonic()
        (first, *_) = list(batches_of_ten(source))
        assert len(first.labels) == 10
        assert served.requests["GET"] > 0
        assert time.monotonic() - started < 6 * 0.05 * 10, "far less than one after the other"


def batches_of_ten(source: Source) -> Any:
    samples = Samples(source.train, Preprocess(size=16), None, 0)
    return make_loader(samples, TrainOrder(len(source.train), 10, 0), 0)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("404", DataError, "not in the store"),
        ("403", ResourceError, "the store refuses to give it"),
        ("503", ResourceError, "the store does not answer (ClientResponseError: 503"),
        ("dropped", ResourceError, "the store does not answer (ServerDisconnectedError"),
        ("whole", ResourceError, "the server knows no ranges"),
    ],
)
def test_a_store_that_does_not_give_is_one_line(shards: Path, fault: Any, kind: type[SelkernError], words: str) -> None:
    with serving(shards, always=fault) as served:
        with pytest.raises(kind, match="^" + words.replace("(", r"\(")) as caught:
            open_source(f"{served.address}/train-000000.tar")
        assert served.address in str(caught.value)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_store_that_goes_during_a_run_ends_it_with_the_state_kept(
    server: StoreServer, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a skipped image, though images that cannot be read are to be skipped; and the run goes on afterwards."""
    recipe = Recipe(epochs=3, batch_size=10, image_size=16)
    options = TrainOptions(
        data=address(server), output=str(tmp_path), name="run", report=False, workers=workers, training=recipe
    )

    def go_down(*_: Any) -> str:
        server.down = True
        return "an epoch"

    monkeypatch.setattr("selkern.train.loop.epoch_line", go_down)
    with pytest.raises(ResourceError, match="the store does not answer") as caught:
        run.train(options)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "run" / "bad_files.csv").exists()
    server.down = False
    monkeypatch.undo()
    done = run.resume(RunFolder(tmp_path / "run"))
    assert done is not None
    assert [row["skipped"] for row in done.read_metrics()] == [0, 0, 0]
    assert "shuffle: shards" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_local_cache_copies_each_shard_once(server: StoreServer, shards: Path, tmp_path: Path) -> None:
    kept = TableOptions(local_cache=str(tmp_path / "copies"))
    whole = batches(open_source(str(shards)), 0)
    source = open_source(address(server), table=kept)
    assert all(map(torch.equal, batches(source, 2), whole))
    copies = [file for file in (tmp_path / "copies").iterdir() if not file.name.startswith(".")]
    assert {file.name.partition("-")[2]: file.read_bytes() for file in copies} == {
        file.name: file.read_bytes() for file in shards.iterdir()
    }
    before = server.requests["GET"]
    assert all(map(torch.equal, batches(source, 0), whole))
    assert server.requests["GET"] == before, "nothing is fetched again"
    next(file for file in copies if "train" in file.name).unlink()  # it is copied again
    assert all(map(torch.equal, batches(source, 0), whole))
    assert server.requests["GET"] > before


def test_a_full_disk_is_one_line(server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    copies = tmp_path / "copies"
    copies.mkdir()
    source = open_source(address(server))
    stamp = stores.Store("http").stamp(f"{server.address}/train-000000.tar")
    place = local_copy.LocalCopies(stores.Store("http"), str(copies))
    real = Path.open

    def opened(path: Path, *given: Any, **named: Any) -> Any:
        return real(full if path.name.endswith(".tmp") else path, *given, **named)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ResourceError, match="No space left") as caught:
        place.read(f"{server.address}/train-000000.tar", stamp, 0, 10, "here")
    assert caught.value.exit_code == 5
    assert len(source.train)


@pytest.mark.exhaustive
def test_the_commands_take_an_address(server: StoreServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", address(server), "--workers", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["images"], said["unreadable"]) == ("shards", 72, [])
    assert cli.main(["data", "check", f"{server.address}/train-000099.tar"]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: not in the store | http")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_check_of_a_store_that_goes_is_one_line(server: StoreServer, workers: int) -> None:
    source = open_source(address(server))
    server.down = True
    with pytest.raises(
        ResourceError, match=r"^the store does not answer \(\w+: [^|]*\) \| http[^|]* \| asked 10 times"
    ):
        check_data(source, workers=workers)


@pytest.mark.parametrize("named", ["/", "/train-*.tar", "/train-{000000..000004}.tar"])
def test_an_object_store_is_listed(shards: Path, named: str) -> None:
    """fsspec's store in memory answers as those of s3:// and gs:// do: names without the protocol, no HTTP."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in shards.iterdir():
        memory.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    source, near = open_source(f"memory://bucket{named}"), open_source(str(shards))
    assert source.classes == ("cat", "dog")
    assert len(source.val) == len(near.val), "those of train bring those of val"
    assert source.train.where(0) == f"memory://bucket/{next(near.split_rows())[0]}"
    assert source.train.read(7).tobytes() == near.train.read(7).tobytes()
    if named == "/":
        assert list(source.split_rows()) == list(near.split_rows())
    with pytest.raises(DataError, match=r"no \.tar shards are listed there"):
        open_source("memory://nothing/")
    with pytest.raises(DataError, match="not in the store"):
        open_source("memory://bucket/none-0.tar")


def test_a_missing_package_is_named() -> None:
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        if shutil.which(package):
            continue
        with pytest.raises(PackageError, match=f"^{package} is not installed .* pip install {package}$"):
            open_source(f"{protocol}://bucket/train-0.tar")
    with pytest.raises(DataError, match="unknown kind of address"):
        open_source("nothing://bucket/train-0.tar")


def test_patterns() -> None:
    assert list(expand("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert sorted(expand("{b,a{1..2}}.tar::c.tar")) == ["a1.tar", "a2.tar", "b.tar", "c.tar"]
    assert list(expand("x{3..1}")) == ["x3", "x2", "x1"]
    with pytest.raises(DataError, match="over 1,000,000 shards"):
        list(expand("{0..9999999}.tar"))
