"""How long a training takes from the command to the end of its first step, and what its listing of the images weighs.

    python -m benchmarks.synthetic files /tmp/million
    python -m benchmarks.start /tmp/million                 # or tar shards of the same

Three times each: without an index of the data set, with it, and resumed at a random step after a kill -9. The network
and its images are small, so that little but the start is measured. Memory is what the process holds of its own, and of
files that it shares with others (the index), beyond the same training on 6,400 images.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.synthetic import small_files
from selkern.measure.machine import describe, summary

_BATCH = 64
_LONGEST = 600.0  # s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--times", type=int, default=3)
    words = parser.parse_args()
    print(summary(describe()))
    rows: dict[str, list[float]] = {"without an index": [], "with the index": [], "resumed": []}
    for number in range(words.times):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            rows["without an index"].append(_start(words.data, place, "first")[0])
            seconds, memory = _start(words.data, place, "second")
            small_files(place / "images", images=100 * _BATCH, classes=2, validation=2)
            few = _start(str(place / "images"), place, "small")[1]
            more = {key: memory[key] - few[key] for key in memory}
            rows["with the index"].append(seconds)
            rows["resumed"].append(_resume(words.data, place, random.Random(number)))
            print(
                f"start without an index {rows['without an index'][-1]:.1f} s, with it {seconds:.1f} s; memory ", end=""
            )
            own, files, most = (more[key] for key in ("RssAnon", "RssFile", "VmHWM"))
            print(f"{own:.0f} MB of its own and {files:.0f} MB of files, {most:.0f} MB at most")
            print(f"resumed {rows['resumed'][-1]:.1f} s: {rows['resumed'][-1] - seconds:+.1f} s beyond the start")
    print("\n".join(f"{name}: {statistics.median(values):.1f} s (median)" for name, values in rows.items()))


def _start(data: str, place: Path, name: str) -> tuple[float, dict[str, float]]:
    """Seconds to the end of the first step of a new run, and its memory."""
    process, seconds = _until(_command(data, place, name, 10_000), place, 1 + _steps(place, name), name)
    memory = _memory(process.pid)
    process.kill()
    process.wait()
    return seconds, memory


def _resume(data: str, place: Path, rng: random.Random) -> float:
    """Seconds to the end of the first step after a kill at a random step."""
    process, _ = _until(_command(data, place, "killed", 20), place, rng.randrange(25, 300), "killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = _steps(place, "killed") // 20 * 20  # where it goes on
    words = [sys.executable, "-m", "selkern.cli", "train", "--resume", str(place / "killed")]
    process, seconds = _until(words, place, steps + 1, "killed", resumes=True)
    process.kill()
    process.wait()
    return seconds


def _command(data: str, place: Path, name: str, save: int) -> list[str]:
    words = [sys.executable, "-m", "selkern.cli", "train", "--data", data, "--output", str(place), "--name", name]
    words += ["--model", "sknet_mini", "--recipe", "cifar", "--image-size", "32", "--batch-size", str(_BATCH)]
    return [*words, "--threads", "1", "--save-steps", str(save), "--log-order", "--no-report"]


def _steps(place: Path, name: str) -> int:
    """Steps whose images are in a run's order file."""
    try:
        return (place / name / "order.rank0.csv").read_bytes().count(b"\n") // _BATCH
    except OSError:
        return 0


def _until(
    words: list[str], place: Path, steps: int, name: str, *, resumes: bool = False
) -> tuple[subprocess.Popen[bytes], float]:
    """The command, started, and the seconds until it has done so many steps: it has begun the one after them."""
    environment = {**os.environ, "SELKERN_CACHE": str(place / "cache")}
    order = place / name / "order.rank0.csv"
    before = order.stat().st_mtime_ns if resumes else 0
    started = time.monotonic()
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    while True:
        seconds = time.monotonic() - started
        if _steps(place, name) > steps and order.stat().st_mtime_ns > before:
            return process, seconds
        if process.poll() is not None or seconds > _LONGEST:
            process.kill()
            raise SystemExit((place / "log").read_text()[-2000:])
        time.sleep(0.02)


def _memory(process: int) -> dict[str, float]:
    """What a process holds, MB, by the words of the system."""
    fields = map(str.split, Path(f"/proc/{process}/status").read_text().splitlines())
    return {field[0].rstrip(":"): int(field[1]) / 1000 for field in fields if len(field) == 3 and field[2] == "kB"}


if __name__ == "__main__":
    main()
