"""What every job of `gpu.py` uses: the device, a clock for it, errors as rows; the card's ceilings and description."""

from __future__ import annotations

import gc
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_plan import Row, Stage, stages
from benchmarks.machine import one_line
from selkern.measure import machine
from selkern.measure.timing import Spread

SECONDS = 0.25  # that the repetitions of one timing may take
_LEAST, _MOST = 10, 200  # repetitions
_FLUSH = 1 << 28  # bytes, more than any cache
_CYCLES = 2e9  # of the GPU's clock in a second, about
_LONGEST_WAIT = 0.02  # seconds


@dataclass
class Session:
    """The state of one worker.

    Attributes:
        device: where everything is computed.
        tiny: shapes for Triton's interpreter; times then mean nothing.
        seed: of the random numbers.
        emit: is given every row.
        wrong: kernels that gave a wrong result, or none; they are not timed.
    """

    device: torch.device
    tiny: bool
    seed: int
    emit: Callable[[Row], None]
    wrong: set[str] = field(default_factory=set)
    _flushed: Tensor | None = None

    def stage(self, number: int) -> Stage:
        """By its number."""
        return stages(self.tiny)[number - 1]

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` by torch.compile; without Inductor where times mean nothing, since that takes long."""
        return torch.compile(function, dynamic=False, backend="aot_eager" if self.tiny else "inductor")

    def autocast(self, *, cache: bool = True) -> torch.autocast:
        """To bfloat16, which all networks and units are measured with."""
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=cache)

    def synchronize(self) -> None:
        """Wait for the device; where a kernel went astray, this is what raises."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self, job: Callable[[], object], seconds: float = SECONDS) -> Spread:
        """Milliseconds of a job on the device, its caches emptied before each run."""
        if self.device.type != "cuda":
            return Spread.of([_host_ms(job)])
        job()
        self.synchronize()
        begin = time.perf_counter()
        job()
        issuing = time.perf_counter() - begin
        self.synchronize()
        count = round(seconds / max(time.perf_counter() - begin, 1e-9))
        times = [self._timed(job, issuing) for _ in range(min(max(count, _LEAST), _MOST))]
        self.synchronize()
        return Spread.of([start.elapsed_time(end) for start, end in times])

    def _timed(self, job: Callable[[], object], issuing: float) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """Events before and after a job that the host has issued as a whole before the device begins with it."""
        start, end = _event(), _event()
        if self._flushed is None:
            self._flushed = torch.ones(_FLUSH // 4, device=self.device)
        # Reading, not writing: written lines would be put back to memory while the job runs, at its cost.
        self._flushed.amax()
        torch.cuda._sleep(int(_CYCLES * min(2 * issuing, _LONGEST_WAIT)))  # type: ignore[no-untyped-call]
        start.record()
        job()
        end.record()
        return start, end

    def steps(self, step: Callable[[], object], seconds: float = 3.0) -> Spread:
        """Milliseconds of one step among many without a pause, as in training: what the host cannot hide counts."""
        if self.device.type != "cuda":
            return Spread.of([_host_ms(step)])
        for _ in range(3):
            step()
        self.synchronize()
        begin = time.perf_counter()
        step()
        self.synchronize()
        count = min(max(round(seconds / (time.perf_counter() - begin)), _LEAST), _MOST)
        events = [_event() for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        self.synchronize()
        return Spread.of([a.elapsed_time(b) for a, b in pairwise(events)])

    @contextmanager
    def row(self, part: str, what: str, case: str, variant: str) -> Iterator[dict[str, Any]]:
        """A row to be filled in; an error within becomes its `error`, and memory is given back afterwards."""
        fields: dict[str, Any] = {}
        try:
            yield fields
        except Exception as error:  # noqa: BLE001 - whatever a row raises, the rest is still worth measuring
            fields = {"error": line(error)}
        self.emit(Row(part=part, what=what, case=case, variant=variant, **fields))
        self.synchronize()  # raises where the device is lost, for which another worker is needed
        self.clear()

    def clear(self) -> None:
        """Give the memory of a row back, and what was compiled for it."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def timed(spread: Spread, **more: Any) -> dict[str, Any]:
    """Fields of a row."""
    return {"ms": spread.median, "low": spread.low, "high": spread.high, **more}


def line(error: BaseException) -> str:
    """An error as one line."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _host_ms(job: Callable[[], object]) -> float:
    begin = time.perf_counter()
    job()
    return (time.perf_counter() - begin) * 1e3


def ceilings(session: Session, *, again: bool = False) -> None:
    """What this card copies and multiplies at most; `again` at the end, to see whether it slowed down meanwhile."""
    size = (1 << 16) if session.tiny else 1 << 30  # elements of 2 bytes: far more than fit a cache
    what = "copy, once more" if again else "copy"
    with session.row("ceiling", what, "device memory", "torch") as fields:
        x = torch.randn(size, device=session.device, dtype=torch.bfloat16)
        y = torch.empty_like(x)
        fields |= timed(session.measure(lambda: y.copy_(x)), gbyte=2 * x.nbytes / 1e9)
    if again:
        return
    side = 64 if session.tiny else 8192
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16), ("tf32", torch.float32)):
        with (
            session.row("ceiling", "matmul", name, "torch") as fields,
            tf32_products() if name == "tf32" else nullcontext(),
        ):
            a, b = (torch.randn(side, side, device=session.device, dtype=dtype) for _ in range(2))
            fields |= timed(session.measure(partial(torch.matmul, a, b)), tflop=2 * side**3 / 1e12)


@contextmanager
def tf32_products() -> Iterator[None]:
    """Matrix products of float32 by tf32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def describe(session: Session) -> dict[str, Any]:
    """The machine, the card and its clocks, as far as they are known."""
    fields = {**machine.describe(), "triton": machine.version_of("triton"), "cuda": torch.version.cuda}
    fields |= {"seed": session.seed, "device": str(session.device), "cudnn_benchmark": torch.backends.cudnn.benchmark}
    if session.device.type != "cuda":
        return fields
    properties = torch.cuda.get_device_properties(session.device)
    fields |= {
        "gpu": torch.cuda.get_device_name(session.device),
        "capability_gpu": list(torch.cuda.get_device_capability(session.device)),
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    names = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "-i", "0"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        fields |= dict(zip(names, (word.strip() for word in printed.split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        fields["driver_version"] = f"unknown ({line(error)})"
    return fields
