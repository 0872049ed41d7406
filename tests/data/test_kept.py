"""Columns hold what lists of strings hold, and a kept index is what was built, until its stamp is another."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from selkern.data import columns, kept
from selkern.data.columns import Coded, Files, Texts
from selkern.data.kept import Arrays, cache_folder, find_index, keep_index, kept_index

WORDS = [f"näme {number}\udc80\n" if number % 3 else "" for number in range(1000)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELKERN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def arrays(n: int = 100_000) -> Arrays:
    texts = Texts.of(f"{number}.jpg" for number in range(n))
    return {"data": texts.data, "ends": texts.ends, "none": np.zeros(0, dtype=np.int32)}


@pytest.mark.parametrize("chunk", [7, 1 << 16])
def test_texts_are_the_strings_that_they_were_made_of(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CHUNK", chunk)
    texts = Texts.of(iter(WORDS))
    assert list(texts) == WORDS
    assert [texts[at] for at in range(len(WORDS))] == WORDS
    assert texts[-1] == WORDS[-1]
    assert texts[10:20] == WORDS[10:20]
    assert list(Texts.of([])) == []
    with pytest.raises(IndexError):
        texts[len(WORDS)]


@pytest.mark.parametrize("chunk", [7, 1 << 16])
def test_coded_words_and_files(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CHUNK", chunk)
    words = [WORDS[at % 7] for at in range(100)]
    coded = Coded.of(words)
    assert list(coded) == words
    assert coded.counts == {word: words.count(word) for word in dict.fromkeys(words)}
    assert list(coded.renamed(["x"] * len(coded.values))) == ["x"] * 100
    assert coded.renamed(["x"] * len(coded.values)).values == ("x",)
    assert Coded.of(coded) is coded
    assert Coded(np.zeros(2, dtype=np.int32), ("a", "b")).counts == {"a": 2}
    files = Files(["/a", "/b"], np.array([0, 1, 1] * 9, dtype=np.int32), Texts.of(["x", "y", "z"] * 9))
    assert list(files) == ["/a/x", "/b/y", "/b/z"] * 9
    assert files[1] == "/b/y"


def test_an_index_is_built_once_for_each_stamp() -> None:
    built = []

    def build() -> Arrays:
        built.append(1)
        return arrays()

    for stamp, times in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        held, notes = kept_index("set", stamp, build)
        assert (len(built), notes) == (times, ())
        assert all((held[key] == value).all() for key, value in arrays().items())
    assert kept_index("another set", "b", build)[0] and len(built) == 3


def test_arrays_travel_as_the_name_of_their_file() -> None:
    held, _ = keep_index("set", "", arrays())
    for part in (
        held["ends"],
        held["ends"][1000:],
        held["data"][3:77],
        pickle.loads(pickle.dumps(held["ends"][5:]))[9:],
    ):
        sent = pickle.dumps(part)
        assert len(sent) < 500
        back = pickle.loads(sent)
        assert isinstance(back, kept.Mapped) and (back == part).all()
        assert (pickle.loads(pickle.dumps(back[2:])) == part[2:]).all()
    for part in (held["ends"][::2], held["ends"] + 1):  # these lie in no file
        assert (pickle.loads(pickle.dumps(part)) == part).all()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(np.sum, (held["ends"],)) == arrays()["ends"].sum()


@pytest.mark.parametrize("harm", ["cut", "empty", "text", "no stamp", "gone"])
def test_a_broken_index_is_made_anew(harm: str) -> None:
    keep_index("set", "s", arrays())
    (made,) = (cache_folder() / "index").rglob("ends.npy")
    if harm == "cut":
        made.write_bytes(made.read_bytes()[:-8])
    elif harm == "empty":
        made.write_bytes(b"")
    elif harm == "text":
        made.write_text("not an array")
    elif harm == "gone":
        made.unlink()
    else:
        (made.parent / "stamp.json").unlink()
    held, notes = kept_index("set", "s", arrays)
    assert all((held[key] == value).all() for key, value in arrays().items()) and not notes


def test_no_pickle_is_loaded() -> None:
    keep_index("set", "s", arrays())
    (made,) = (cache_folder() / "index").rglob("ends.npy")
    np.save(made, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert find_index("set") is None


def test_where_nothing_can_be_written_a_note_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("SELKERN_CACHE", str(blocked))
    held, (note,) = kept_index("set", "s", arrays)
    assert (held["ends"] == arrays()["ends"]).all()
    assert "no index can be kept" in note and "SELKERN_CACHE" in note


def test_old_indexes_are_removed_when_one_is_kept() -> None:
    keep_index("set", "a", arrays())
    (place,) = (cache_folder() / "index").glob("*/*")
    os.utime(place, (time.time() - 8 * 86400,) * 2)
    keep_index("set", "b", arrays())
    assert not place.exists()
    index = find_index("set")
    assert index is not None and index.stamp == "b"


def test_of_two_processes_one_builds() -> None:
    program = (
        "import sys, time, numpy as np\nfrom selkern.data.kept import kept_index\n"
        "def build():\n    print('built'); time.sleep(1); return {'a': np.arange(3)}\n"
        "assert kept_index('set', 's', build)[0]['a'].sum() == 3"
    )
    words = [sys.executable, "-c", program]
    pair = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ}) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0] for process in pair) == ["", "built\n"]
    assert all(process.returncode == 0 for process in pair)
