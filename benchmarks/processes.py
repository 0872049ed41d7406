"""Workloads that need processes of their own: starting up, training on several ranks, the growth of a fresh process.

A child is `python -m benchmarks.processes JOB SETTINGS`, with JSON in and out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from benchmarks import goals as names
from benchmarks.machine import environment
from benchmarks.results import Row
from benchmarks.session import Session
from selkern.errors import ResourceError
from selkern.measure.memory import now_in_process, peak_of_process
from selkern.tuning import tune

_IMPORT = """import time, torch
start = time.perf_counter()
import selkern
print(time.perf_counter() - start)"""
_IMPORT_ALL = """import time, torch
start = time.perf_counter()
import selkern
for name in selkern.__all__:
    getattr(selkern, name)
print(time.perf_counter() - start)"""
_IMPORT_TORCH = """import time
start = time.perf_counter()
import torch
print(time.perf_counter() - start)"""
_PATIENCE = 600  # seconds for one child


def run_child(job: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one job in a fresh process, and return its result.

    Raises:
        ResourceError: it failed; the message ends with its last line.
    """
    return _run_children(job, [settings], [{}])[0]


def _run_children(job: str, settings: list[dict[str, Any]], given: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Run several processes at once, and return the result of each."""
    children = []
    for one, extra in zip(settings, given, strict=True):
        words = [sys.executable, "-m", "benchmarks.processes", job, json.dumps(one | {"threads": _threads(len(given))})]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(words, env=environment(**extra), stdout=pipe, stderr=pipe, text=True))
    try:
        said = [child.communicate(timeout=_PATIENCE) for child in children]
    except subprocess.TimeoutExpired:
        raise ResourceError(f"a child process took more than {_PATIENCE} s", job, "measure it alone") from None
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
    for child, (_, error) in zip(children, said, strict=True):
        if child.returncode:
            last = (error.strip().splitlines() or ["no message"])[-1]
            raise ResourceError(f"a child process ended with {child.returncode}: {last}", job, "")
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in said]


def _threads(processes: int) -> int:
    return max(1, torch.get_num_threads() // processes)


def start(session: Session) -> None:
    """How long the program and the package take to start, each in a fresh Python, in turn."""
    session.say("start: imports and --help")
    programs = {
        (names.IMPORT, names.OURS): ["-c", _IMPORT],
        ("import selkern and all its names, after torch", names.OURS): ["-c", _IMPORT_ALL],
        ("import torch", "torch"): ["-c", _IMPORT_TORCH],
        (names.HELP, names.OURS): ["-m", "selkern.cli", "--help"],
        ("python -c pass", "Python"): ["-c", "pass"],
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in programs}
    rounds = session.rounds or 7
    for turn in range(rounds + 1):
        for key, words in programs.items():
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *words], env=environment(), capture_output=True, text=True, check=False
            )
            whole = time.perf_counter() - begin
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                session.results.lacks("start", f"{key[1]} ({key[0]})", last)
            elif turn or session.trial:  # the first one reads the files from the disk
                times[key].append(float(done.stdout) if words[1].startswith("import time") else whole)
        if session.trial:
            break
    for (quantity, variant), seconds in times.items():
        if not seconds:
            continue
        row = Row(
            workload="start",
            case=names.FRESH,
            quantity=quantity,
            variant=variant,
            unit="ms",
            samples=tuple(value * 1e3 for value in seconds),
        )
        session.results.rows.append(row)


def ddp(session: Session) -> None:
    """Training on one and on two processes (gloo), which share the same cores and the same batch, in turn."""
    batch, steps = (8, 2) if session.trial else (64, 20)
    rates: dict[str, list[float]] = {"1 process": [], "2 processes": []}
    for turn in range(session.rounds or (1 if session.trial else 3)):
        for world, variant in enumerate(rates, start=1):
            session.say(f"ddp: {variant}, round {turn + 1}")
            try:
                rates[variant].append(_ranks(world, batch, steps))
            except (ResourceError, OSError) as error:
                session.results.lacks("ddp", variant, error)
    for variant, speeds in rates.items():
        if speeds:
            row = Row(
                workload="ddp",
                case=f"sknet_mini, batch {batch} over all processes, {torch.get_num_threads()} threads over all",
                quantity=names.STEP,
                variant=variant,
                unit="steps/s",
                samples=tuple(speeds),
                against="1 process" if variant != "1 process" else "",
                more_is_better=True,
            )
            session.results.rows.append(row)


def _ranks(world: int, batch: int, steps: int) -> float:
    """Steps per second of `world` ranks."""
    with TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        settings = [
            {"rank": rank, "world": world, "batch": batch, "steps": steps, "meeting": meeting} for rank in range(world)
        ]
        loopback = {"GLOO_SOCKET_IFNAME": "lo"} if Path("/sys/class/net/lo").exists() else {}
        return float(_run_children("ddp", settings, [loopback] * world)[0]["steps_per_s"])


def memory_in_child(settings: dict[str, Any]) -> dict[str, Any]:
    """MiB per image by which a training step makes this process grow, over a network that has its gradients."""
    from benchmarks.networks import build
    from benchmarks.session import Session

    session, batch = Session(trial=settings["trial"]), settings["batch"]
    model = build(settings["variant"], session).train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # that gradients take memory is no variant's doing
    x, labels = torch.randn(batch, 3, session.side, session.side), torch.zeros(batch, dtype=torch.long)
    before = max(now_in_process(), 1.0)
    F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
    return {"grown": max(0.0, peak_of_process() - before) / batch}


def ddp_in_child(settings: dict[str, Any]) -> dict[str, Any]:
    """Steps per second of this rank among its peers."""
    from selkern.models.registry import create_model

    rank, world = settings["rank"], settings["world"]
    torch.manual_seed(0)
    model: nn.Module = create_model("sknet_mini", num_classes=10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if world > 1:
        dist.init_process_group("gloo", init_method=settings["meeting"], rank=rank, world_size=world)
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    share = settings["batch"] // world
    x = torch.randn(share, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(share) % 10
    begin = 0.0
    for number in range(-2, settings["steps"]):
        if number == 0:
            begin = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seconds = time.perf_counter() - begin
    if world > 1:
        dist.destroy_process_group()
    return {"steps_per_s": settings["steps"] / seconds}


def main(job: str, settings: dict[str, Any]) -> None:
    """Run a job and print its result as one JSON object."""
    tune()
    torch.set_num_threads(settings["threads"])
    print(json.dumps({"memory": memory_in_child, "ddp": ddp_in_child}[job](settings)))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
