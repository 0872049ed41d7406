"""One thread that computes: of each asker only the newest request counts, and a queue that is full says so."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
_QUIET = 0.3  # seconds without a request before idle work goes on
_ASKERS = 1024  # whose newest number is remembered


class Superseded(Exception):
    """A newer request of the same asker has come: this one is not computed."""


class Busy(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True)
class _Job:
    work: Callable[[], Any]
    future: Future[Any]


class Worker:
    """Computes requests in the order they came in, one at a time, off the thread that asks.

    Args:
        limit: requests that may wait.
        idle: work for when nobody asks, a step at each `next`; what it raises ends it.
    """

    def __init__(self, limit: int = 32, idle: Iterator[object] | None = None) -> None:
        self.limit = limit
        self._idle = idle
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="selkern explore", daemon=True)
        self._thread.start()

    def submit(self, asker: str, number: int, work: Callable[[], T]) -> Future[T]:
        """Put work into the queue, in place of what the same asker has waiting there.

        Args:
            asker: who asks, such as one pane of one tab of a browser.
            number: of the request; a smaller one than has been seen of this asker is superseded.

        Raises:
            Superseded: a newer one came before.
            Busy: the queue is full, or closed.
        """
        with self._changed:
            if number < self._newest.get(asker, number):
                raise Superseded
            old = self._jobs.pop(asker, None)
            if old is not None and not old.future.cancelled():
                old.future.set_exception(Superseded())
            if self._closed or len(self._jobs) >= self.limit:
                raise Busy
            self._newest[asker] = number
            self._newest.move_to_end(asker)
            if len(self._newest) > _ASKERS:
                self._newest.popitem(last=False)
            job = _Job(work, Future())
            self._jobs[asker] = job
            self._changed.notify()
        return job.future

    def close(self, timeout: float = 10) -> None:
        """Drop what waits and let the work in hand end, for so many seconds."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify()
        self._thread.join(timeout)

    def _next(self) -> _Job | None:
        """The oldest request; None where it is time for a step of idle work."""
        with self._changed:
            while not self._jobs and not self._closed:
                if not self._changed.wait(_QUIET if self._idle is not None else None):
                    return None
            return None if self._closed else self._jobs.popitem(last=False)[1]

    def _run(self) -> None:
        while not self._closed:
            job = self._next()
            if job is None:
                self._step()
            elif job.future.set_running_or_notify_cancel():
                try:
                    job.future.set_result(job.work())
                except BaseException as error:  # noqa: BLE001  the network's code may raise anything, even SystemExit
                    job.future.set_exception(error)

    def _step(self) -> None:
        """One step of idle work, or steps until somebody asks."""
        while self._idle is not None and not self._jobs and not self._closed:
            try:
                next(self._idle)
            except BaseException:  # noqa: BLE001  as above; StopIteration is its ordinary end
                self._idle = None
