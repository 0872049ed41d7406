"""Files made to do harm, through the real commands.

Nothing in them may run (a canary file would appear), and each is refused within a second and 200 MB of memory, in one
line that holds no characters that steer a terminal. A few are only unpleasant to read, and may be used.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from guarantees import attack_files, attack_pickles
from guarantees.calls import LIMIT, TINY, Said, call, faults
from guarantees.cases import CHECKPOINT, DATA, OK, USAGE, Case, Place, make_images, run_groups
from guarantees.pictures import encode, noise

MEMORY, SECONDS = 200 << 20, 1.0  # bytes and time that a refusal may take
TRIES = 3  # other work on the machine may make one slow
REFUSED = (USAGE, DATA, CHECKPOINT)
Call = Callable[[Sequence[str], Path, float], Said]


def canary(place: Place) -> Path:
    """The file that attacks try to make."""
    return place.root / "canary"


def pickles(place: Place) -> Iterator[Case]:
    """Every pickle bare, in a torch file of each kind, and under every name that a command takes."""
    payloads = {**attack_pickles.running(canary(place)), **attack_pickles.eating()}
    for name, pickled in payloads.items():
        for kind, wrap in (("bare", bytes), ("zip", attack_pickles.in_zip), ("old file", attack_pickles.in_old_file)):
            yield _converted(place, f"{name}, {kind}", wrap(pickled), "pth")
    system = payloads["GLOBAL os.system"]
    for suffix in ("pt", "bin", "safetensors", "caffemodel", "npy", "png"):
        yield _converted(place, f"a pickle as .{suffix}", system, suffix)
    for name, data in {
        "tar": attack_pickles.in_tar(system),
        "npy": attack_pickles.numpy_file(canary(place)),
        "saved by torch": attack_pickles.saved_by_torch(canary(place), old=False),
        "saved by an old torch": attack_pickles.saved_by_torch(canary(place), old=True),
    }.items():
        yield _converted(place, name, data, "pth")
    for name, words in {
        "evaluate": ("evaluate", "{}", "--data", str(place.good)),
        "predict by": ("predict", "{}", str(place.good)),
        "start from": place.train(place.good, "--weights", "{}"),
        "check": ("check", "{}"),
        "predict": place.predict("{}"),
        "a table": place.train("{}"),
        "class names": (
            "convert",
            str(place.weights),
            str(place.root / "new.safetensors"),
            "--model",
            TINY,
            "--classes",
            "{}",
        ),
    }.items():
        for suffix in ("safetensors", "pth", "png", "csv", "parquet"):
            file = place.fresh() / f"w.{suffix}"
            file.write_bytes(system)
            yield Case(f"{name} a pickle as .{suffix}", tuple(word.replace("{}", str(file)) for word in words), REFUSED)


def _converted(place: Place, name: str, data: bytes, suffix: str) -> Case:
    file = place.fresh() / f"w.{suffix}"
    file.write_bytes(data)
    place.output.mkdir()
    words = ("convert", str(file), str(place.output / "new.safetensors"), "--model", TINY)
    return Case(name, words, REFUSED, (str(file),))


def archives(place: Place) -> Iterator[Case]:
    """Archives and tensors that are more than they seem."""
    yield _converted(place, "a packed gigabyte", attack_pickles.bomb(1 << 30), "pth")
    yield _converted(place, "a thousand times the same megabyte", attack_pickles.overlapping(1000, 1 << 20), "pth")
    import torch

    for name, state in attack_pickles.odd_tensors().items():
        file = place.fresh() / "w.pth"
        torch.save(state, file)
        place.output.mkdir()
        yield Case(
            name, ("convert", str(file), str(place.output / "new.safetensors"), "--model", TINY), REFUSED, (str(file),)
        )
    for suffix in ("pth", "bin"):
        file = attack_files.sparse(place.fresh() / f"w.{suffix}", attack_files.HUGE, b"\x80\x02")
        yield Case(
            f"a terabyte as .{suffix}",
            ("convert", str(file), "new.safetensors", "--model", TINY),
            REFUSED,
            (str(file),),
        )
    for name, file in attack_files.caffemodels(place.fresh()):
        yield Case(
            f"caffemodel: {name}",
            ("convert", str(file), "new.safetensors", "--model", "sknet50"),
            REFUSED,
            (str(file),),
        )
    for name, file in attack_files.safetensors(place.fresh()):
        for words in (("evaluate", str(file), "--data", str(place.good)), ("check", str(file))):
            yield Case(f"{words[0]}: {name}", words, REFUSED, (str(file),))
        yield Case(
            f"convert: {name}", ("convert", str(file), "new.safetensors", "--model", TINY), REFUSED, (str(file),)
        )
    place.fresh()


def runs(place: Place) -> Iterator[Case]:
    """Run folders as somebody else might send them: options and states."""
    system = attack_pickles.running(canary(place))["GLOBAL os.system"]
    place.fresh()
    run = Path(shutil.copytree(place.run, place.output / "run"))
    config, sound = run / "config.yaml", (run / "config.yaml").read_text()
    for name, text in {**attack_files.YAML, "a pickle": ""}.items():
        config.write_bytes(text.format(canary=str(canary(place))).encode() if text else system)
        for words in (("train", "--resume", str(run)), ("evaluate", str(run))):
            yield Case(f"config.yaml, {words[0]}: {name}", words, REFUSED)
    attack_files.sparse(config, attack_files.HUGE, sound.encode())
    yield Case("config.yaml: a terabyte", ("train", "--resume", str(run)), REFUSED)
    config.write_text(sound.replace("epochs: 1\n", "epochs: 2\n"))
    (state,) = (run / "state").glob("step-*")
    for name in attack_files.state_files(state, canary(place), system):
        yield Case(f"state: {name}", ("train", "--resume", str(run), "--device", "cpu"), REFUSED, (str(run),))
    place.fresh()


def images(place: Place) -> Iterator[Case]:
    """Images, tables, folders and names."""
    for name, file in attack_files.images(place.fresh()):
        codes = (OK, DATA) if file.name == "may-be-read.png" else (DATA,)
        yield Case(f"image: {name}", place.predict(file), codes)
        # Where it is no image, the folder has none.
    for name, file in attack_files.tables(place.fresh()):
        yield Case(f"table: {name}", place.train(file), (DATA,), (file.name,))
    place.fresh()


def pages(place: Place) -> Iterator[Case]:
    """Names that would be markup or formulas where they are shown; the report must show them as text."""
    markup = "<script>alert(1)<", "<img src=x onerror=alert(1)>"
    make_images(place.fresh() / "data", 6, markup)
    first = next((place.input / "data" / markup[1]).iterdir())
    first.rename(first.with_name('"><script>alert(2)<.png'))
    words = (*place.train(place.input / "data"), "--report")

    def escaped(_said: Said) -> str:
        page = next(place.output.glob("*/report.html")).read_text(encoding="utf-8")
        result = [text for text in ("<script", "<img src=x", "onerror=alert(1)>") if text in page]
        return f"the page holds {result}" if result or "&lt;img src=x" not in page else ""

    yield Case("class and file names of markup", words, (OK,), (), escaped)
    table = place.fresh() / "t.csv"
    rows = ["path,label"]
    for number in range(12):
        (place.input / f"{number}.png").write_bytes(encode(noise(16 + number), "PNG"))
        rows.append(f"{number}.png," + ("\"=cmd|' /C touch x'!A0\"", "</script><script>alert(1)</script>")[number % 2])
    table.write_text("\n".join(rows))
    yield Case("labels of formulas and markup", place.train(table), (OK,))


GROUPS: dict[str, Callable[[Place], Iterator[Case]]] = {
    "pickles": pickles,
    "archives": archives,
    "runs": runs,
    "images": images,
    "pages": pages,
}


def run_case(case: Case, place: Place, run: Call = call) -> list[str]:
    """What is wrong with how a command takes a hostile file; nothing, if it does no harm."""
    said = run(case.words, place.root, LIMIT)
    for _ in range(TRIES - 1):
        if said.fault or said.code == OK or said.seconds < SECONDS:
            break
        said = run(case.words, place.root, LIMIT)
    result = faults(said, case.codes, case.shows)
    if said.code == OK and case.check is not None and (wrong := case.check(said)):
        result.append(wrong)
    if said.code != OK and said.seconds >= SECONDS:
        result.append(f"is refused in {said.seconds:.1f} s")
    if said.grown >= MEMORY and case.name not in ("class and file names of markup", "labels of formulas and markup"):
        result.append(f"takes {said.grown >> 20} MB")
    if canary(place).exists():
        canary(place).unlink()
        result.insert(0, "RAN: the canary is there")
    if result:
        result.append(f"code {said.code}, {said.seconds:.2f} s, {said.grown >> 20} MB, said: {said.err[-600:]!r}")
    return result


def run_all(groups: Iterable[str], root: Path, every: int = 1, run: Call = call) -> tuple[int, int, list[str]]:
    """Number of files, how many of them ran, and a paragraph for each that did harm or was not refused as it should."""
    count, failed = run_groups(GROUPS, groups, root, every, lambda case, place: run_case(case, place, run))
    return count, sum("RAN: " in text for text in failed), failed
