"""Two machines on this one: network namespaces with an address each, joined by a cable, and a torchrun in each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tiny import ENVIRONMENT

PORT = 29_500
# Seconds: how often a torchrun shows that it lives, how long it waits for a machine more, and for an answer.
FAST = "keep_alive_interval=1,last_call_timeout=2,read_timeout=20"

# Imported by every process below: says what is opened, to read and to write, and in which part of a run.
WATCH = """
import os, sys
out, data, runs = (os.environ[name] for name in ("WATCH_OUT", "WATCH_DATA", "WATCH_RUNS"))
rank = os.environ.get("RANK")
if rank is not None:
    log = os.open(f"{out}/rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def within(name):
        frame = sys._getframe(2)
        while frame is not None and frame.f_code.co_name != name:
            frame = frame.f_back
        return frame is not None
    def hook(event, args):
        if event not in ("open", "os.mkdir", "os.rename", "os.remove") or not isinstance(args[0], (str, bytes)):
            return
        path = os.path.abspath(os.fsdecode(args[0]))
        if path.startswith(data) and event == "open":
            phase = "train" if within("_train_epoch") else "val" if within("_validate") else "start"
            os.write(log, f"{phase} {path}\\n".encode())
        elif path.startswith(runs) and (event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR)):
            os.write(log, f"write {path}\\n".encode())
    sys.addaudithook(hook)
"""


def missing() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    try:
        with cable():
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here ({error})"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Machine:
    """A namespace with an address.

    Attributes:
        name: of the namespace and of its end of the cable.
        address: of it.
        runs: torchruns that were started in it.
    """

    name: str
    address: str
    runs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self,
        host: Machine,
        words: Sequence[str],
        said: Path,
        *,
        nodes: str = "2",
        restarts: int = 3,
        hidden: Path | None = None,
        watch: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """`torchrun ... selkern train WORDS` on this machine; what it says is added to `said`.

        Args:
            host: the machine at which all meet.
            nodes: how many machines there are, "1:2" for one or two.
            restarts: after failures.
            hidden: a folder that this machine does not see: it has an empty one there.
            watch: more of the environment.
        """
        meet = f"is_host={int(self is host)},{FAST}"
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", "1"]
        agent += ["--max-restarts", str(restarts), "--rdzv-backend", "c10d", "--rdzv-id", "two", "--rdzv-conf", meet]
        agent += [
            "--rdzv-endpoint",
            f"{host.address}:{PORT}",
            "--local-addr",
            self.address,
            "--monitor-interval",
            "0.1",
        ]
        agent += ["-m", "selkern.cli", "train", *words]
        command = ["ip", "netns", "exec", self.name]
        if hidden is not None:
            command += ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{hidden}" && exec "$@"', "sh"]
        settings = {"GLOO_SOCKET_IFNAME": self.name, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with said.open("ab") as file:
            run = subprocess.Popen(
                [*command, *agent],
                env={**ENVIRONMENT, **settings, **(watch or {})},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.runs.append(run)
        return run

    def kill(self) -> None:
        """SIGKILL to every process of this machine."""
        for pid in subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        ).stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for run in self.runs:
            run.wait(10)

    def cut(self) -> None:
        """Pull the cable out."""
        _ip("-n", self.name, "link", "set", self.name, "down")


@contextmanager
def cable() -> Iterator[tuple[Machine, Machine]]:
    """Two machines that reach one another and nothing else; at the end all that ran on them is killed."""
    names = [f"sk{os.getpid()}{letter}" for letter in "ab"]
    machines = Machine(names[0], "10.77.0.1"), Machine(names[1], "10.77.0.2")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for machine in machines:
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", machine.name)
            _ip("-n", machine.name, "link", "set", machine.name, "up")
            _ip("-n", machine.name, "link", "set", "lo", "up")
        yield machines
    finally:
        for machine in machines:
            if Path(f"/run/netns/{machine.name}").exists():
                machine.kill()
                _ip("netns", "del", machine.name)


def wait(enough: Callable[[], bool], seconds: float = 60) -> None:
    """Fail unless something comes true within so many seconds."""
    end = time.monotonic() + seconds
    while not enough():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
