"""The page and its answers over HTTP, for one session that one thread computes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from selkern.errors import DataError, SelkernError, UsageError, kind_and_line, ran_out_of_memory
from selkern.explore.guard import Guard
from selkern.explore.session import Ask, Session, to_png
from selkern.explore.worker import Busy, Superseded, Worker

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
MOST_UPLOADED = 32 << 20  # bytes of one picture
_MOST_ASKED = 64 << 10  # bytes of a question
_UPLOADS = 4  # that are received at once
_PATIENCE = 60  # seconds for a request's body to arrive
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Refused(Exception):
    """A request that gets a status and an error instead of its answer."""

    def __init__(self, status: int, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.status, self.what, self.fix = status, what, fix


def make_app(session: Session, *, host: str, port: int, token: str = "") -> ASGIApp:
    """The application, guarded. Its worker ends with it.

    Args:
        session: what it shows.
        host, port: it will listen at.
        token: see `Guard`.
    """
    worker = Worker(idle=session.warm())
    handlers = _Handlers(session, worker)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)

    routes = [
        Route("/", _answering(handlers.page)),
        Route("/page/{name}", _answering(handlers.page)),
        Route("/api/session", _answering(handlers.facts)),
        Route("/api/means", _answering(handlers.means)),
        Route("/api/picture/{name}", _answering(handlers.picture)),
        Route("/api/look", _answering(handlers.look), methods=["POST"]),
        Route("/api/upload", _answering(handlers.upload), methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes, lifespan=lifespan), host=host, port=port, token=token)


class _Handlers:
    def __init__(self, session: Session, worker: Worker) -> None:
        self.session, self.worker = session, worker
        self.receiving = 0

    async def page(self, request: Request) -> Response:
        """The page and the files that it is made of."""
        name = request.path_params.get("name", "index.html")
        file = _files().get(name)
        if file is None:
            raise Refused(404, "no such file")
        return Response(file, media_type=_KINDS["." + name.rpartition(".")[2]])

    async def facts(self, _request: Request) -> Response:
        """What the page is built from."""
        return _json(self.session.facts())

    async def means(self, _request: Request) -> Response:
        """The mean selection over the run's pictures, as far as it is known."""
        return _json(self.session.mean_facts())

    async def picture(self, request: Request) -> Response:
        """A picture as the network sees it."""
        name = request.path_params["name"]
        png = await self._compute(request, f"picture {name}", 0, lambda: to_png(self.session.pictures.get(name).cut))
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    async def look(self, request: Request) -> Response:
        """What the network makes of a picture."""
        try:
            values = json.loads(await _body(request, _MOST_ASKED))
        except (ValueError, RecursionError) as error:
            raise UsageError("not JSON", "the request", "give an object") from error
        ask = Ask.from_dict(values)
        asker, number = str(values.get("asker", ""))[:64], values.get("number", 0)
        if type(number) is not int:
            raise UsageError("number is no whole number", "the request", "give one")
        return _json(await self._compute(request, asker, number, lambda: self.session.look(ask)))

    async def upload(self, request: Request) -> Response:
        """A picture of the user's, which stays in memory."""
        if self.receiving >= _UPLOADS:
            raise Refused(503, "several pictures are being received", "try again")
        self.receiving += 1
        try:
            data = await _body(request, MOST_UPLOADED)
        finally:
            self.receiving -= 1
        asker = f"upload {id(request)}"
        return _json({"name": await self._compute(request, asker, 0, lambda: self.session.pictures.add(data))})

    async def _compute(self, request: Request, asker: str, number: int, work: Callable[[], T]) -> T:
        """What the worker makes of it; nothing is computed for a browser that has gone."""
        future: asyncio.Future[T] = asyncio.wrap_future(self.worker.submit(asker, number, work))
        gone: asyncio.Future[None] = asyncio.ensure_future(_gone(request))
        try:
            waiting: set[asyncio.Future[Any]] = {future, gone}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not future.done():
            future.cancel()
            raise ClientDisconnect
        return future.result()


def _answering(handler: Handler) -> Handler:
    """A handler whose errors are answers too, so that nothing ends the server."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as error:
            return _json(_error(error.what, "", error.fix), error.status)
        except Superseded:
            return _json(_error("a newer request has come"), 409)
        except (ClientDisconnect, asyncio.CancelledError):
            return Response(status_code=499)
        except Busy:
            return _json(_error("busy: as many requests wait as may", "", "try again"), 503)
        except SelkernError as error:
            status = 400 if isinstance(error, UsageError) else 422 if isinstance(error, DataError) else 500
            return _json(_error(error.what, error.where, error.fix), status)
        except BaseException as error:  # noqa: BLE001  the network's code may raise anything
            if ran_out_of_memory(error):
                return _json(_error("out of memory", "", "give a smaller picture"), 500)
            what = f"the network raised {kind_and_line(error)[:300]}"
            return _json(_error(what, "", "the server goes on: try another picture, or mend the network"), 500)

    return answer


async def _body(request: Request, most: int) -> bytes:
    """The body of a request; a larger one is refused before it is all received."""
    too_large = Refused(413, f"more than {most:,} bytes", "give a smaller file")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > most:
        raise too_large

    async def receive() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(receive(), _PATIENCE)
    except asyncio.TimeoutError:
        raise Refused(408, "the request did not arrive", "try again") from None


async def _gone(request: Request) -> None:
    """Returns when the browser has."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@cache
def _files() -> dict[str, bytes]:
    """The files of the page by name."""
    folder = files("selkern.explore").joinpath("page")
    return {file.name: file.read_bytes() for file in folder.iterdir() if "." + file.name.rpartition(".")[2] in _KINDS}


def _error(what: str, where: str = "", fix: str = "") -> dict[str, Any]:
    return {"error": {"what": what, "where": where, "fix": fix}}


def _json(values: Any, status: int = 200) -> Response:
    return JSONResponse(values, status_code=status)
