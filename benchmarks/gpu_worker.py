"""The process in which `gpu.py` measures: takes jobs, gives a line of JSON for every beginning, row and end.

    python -m benchmarks.gpu_worker SETTINGS    (JSON: jobs, tiny, seed, wrong)

Everything else that is printed here, by compilers for instance, goes to the standard error output.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.gpu_correct import check
from benchmarks.gpu_kernels import time_kernel
from benchmarks.gpu_networks import capture_step, measure_network, measure_unit
from benchmarks.gpu_plan import Job, Row
from benchmarks.gpu_session import Session, ceilings, describe, line

Do = Callable[..., None]


def main(settings: dict[str, Any]) -> int:
    """Do all jobs in turn; 1 where the device was lost on the way."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(kind: str, what: Any) -> None:
        print(json.dumps({kind: what}), file=channel, flush=True)

    torch.backends.cudnn.benchmark = not settings["tiny"]  # the fastest of cuDNN's ways, for whoever uses it
    device = torch.device("cpu" if settings["tiny"] else "cuda:0")
    session = Session(
        device, settings["tiny"], settings["seed"], lambda row: send("row", asdict(row)), set(settings["wrong"])
    )
    doing: dict[str, Do] = {
        "ceiling": ceilings,
        "correct": check,
        "kernel": time_kernel,
        "unit": measure_unit,
        "train": lambda session, variant: measure_network(session, training=True, variant=variant),
        "infer": lambda session, variant: measure_network(session, training=False, variant=variant),
        "graph": capture_step,
    }
    for job in (Job(**each) for each in settings["jobs"]):
        send("begin", job.title)
        torch.manual_seed(session.seed)
        try:
            if job.part == "machine":
                send("machine", describe(session))
            else:
                doing[job.part](session, **job.settings)
        except Exception as error:  # noqa: BLE001 - reported, and the rest goes on
            send("row", asdict(Row(part=job.part, what=job.title, case="", variant="", error=line(error))))
            if job.part == "correct":
                session.wrong.add(job.settings["kernel"])
            if not _alive(session):
                return 1
        send("end", job.title)
    return 0


def _alive(session: Session) -> bool:
    """Whether the device still answers: after an access outside its memory it does not, until the process ends."""
    try:
        session.clear()
        session.synchronize()
    except Exception:  # noqa: BLE001 - of whatever kind
        return False
    return True


if __name__ == "__main__":
    code = main(json.loads(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)  # without the tidying up of a device that may be lost
