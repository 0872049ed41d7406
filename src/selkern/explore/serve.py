"""A server on this machine for one session: its socket, its address, its end."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

import uvicorn

from selkern.errors import ResourceError, UsageError
from selkern.explore.guard import is_loopback
from selkern.explore.server import make_app
from selkern.explore.session import Session

PORT = 8421  # the first that is tried
_PORTS = 50  # that are tried where none was asked for
_CONNECTIONS = 256  # at once; more are answered 503


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket: at the port that was asked for, else at the first free one from `PORT` on.

    Raises:
        UsageError: no such address on this machine.
        ResourceError: the port is taken, or may not be used.
    """
    try:
        family, *_ = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(
            "no such address", f"--host {host}", "give 127.0.0.1, or an address of this machine"
        ) from error
    for number in range(PORT, PORT + _PORTS) if port is None else (port,):
        # With TCP by its number asyncio sends small answers at once; else each waits for an acknowledgement, 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":  # else a port that was just left is not to be had; elsewhere it would share one
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, number))
            listening.listen(_CONNECTIONS)
        except OSError as error:
            listening.close()
            if isinstance(error, socket.gaierror) or error.errno in _NOT_OURS:
                fix = "give 127.0.0.1, or an address of this machine"
                raise UsageError("no address of this machine", f"--host {host}", fix) from error
            if port is not None:
                what = "the port may not be used" if isinstance(error, PermissionError) else "the port is taken"
                raise ResourceError(what, f"--port {number}", "give another, or leave it out") from error
            continue
        return listening
    raise ResourceError("no port is free", f"{PORT} to {PORT + _PORTS - 1}", "give one by --port")


_NOT_OURS = {99, 49, 10049}  # EADDRNOTAVAIL on Linux, macOS, Windows


def address(host: str, port: int, token: str) -> str:
    """Where a browser finds the page."""
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/" + (f"?token={token}" if token else "")


def token_for(host: str, given: str) -> str:
    """The token that is asked for: what was given, else a new one wherever other machines reach the address."""
    return given or ("" if is_loopback(host) else secrets.token_urlsafe(24))


class Server(uvicorn.Server):
    """uvicorn's, which says when the page can be opened.

    Args:
        session: what it shows.
        listening: as `bind` gives it.
        token: see `Guard`.
        ready: called once it answers.
    """

    def __init__(
        self, session: Session, listening: socket.socket, token: str = "", ready: Callable[[], object] = lambda: None
    ) -> None:
        self.listening, self.ready = listening, ready
        host, port, *_ = listening.getsockname()
        config = uvicorn.Config(
            make_app(session, host=host, port=port, token=token),
            log_level="critical",
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=1,
            ws="none",
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does."""
        await super().startup(sockets=sockets)
        self.ready()

    def until_stopped(self) -> None:
        """Answer until Ctrl+C, or until `should_exit` is set."""
        with suppress(KeyboardInterrupt), self.listening:
            asyncio.run(self.serve(sockets=[self.listening]))


def open_browser(url: str) -> None:
    """Open the page where there is a screen, without waiting for the browser."""
    remote = any(name in os.environ for name in ("SSH_CONNECTION", "SSH_TTY"))
    screen = sys.platform in ("win32", "darwin") or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if screen and not remote:
        Thread(target=_open, args=(url,), daemon=True).start()


def _open(url: str) -> None:
    with suppress(Exception):  # the address is printed in any case
        webbrowser.open(url)
