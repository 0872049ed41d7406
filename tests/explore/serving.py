"""A session of the bundled network, and a server of it on a loopback address, for the tests."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from torch import nn

import selkern
from selkern.data.preprocess import Preprocess
from selkern.data.scenes import CLASSES, SceneSplit
from selkern.explore.pictures import Pictures
from selkern.explore.serve import Server, bind
from selkern.explore.session import Session

SCENES = 12


def digits_session(model: nn.Module | None = None) -> Session:
    """The bundled network, or another of its input and classes, with a few digit scenes."""
    bundled = selkern.create_model("sknet_mini", weights="digits").eval()
    assert bundled.card is not None
    preprocess = Preprocess.from_dict(bundled.card.preprocess)
    pictures = Pictures(preprocess, SceneSplit("test", SCENES, 0), CLASSES)
    return Session(bundled if model is None else model, preprocess, CLASSES, pictures, title="digits")


@dataclass(frozen=True)
class Answer:
    """Status, headers by lower-case name, and body of a response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as values."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Place:
    """A server that runs."""

    session: Session
    port: int

    @property
    def address(self) -> str:
        """Of its page."""
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request over a connection of its own; a dict is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(method, path, sent, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def look(self, picture: str = "r0", **more: Any) -> Answer:
        """What the page asks."""
        return self.ask("POST", "/api/look", {"picture": picture, **more})


@contextmanager
def served(session: Session, token: str = "") -> Iterator[Place]:
    """A server in a thread, at a port that the system chooses."""
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    answers = Event()
    server = Server(session, listening, token, ready=answers.set)
    thread = Thread(target=server.until_stopped)
    thread.start()
    assert answers.wait(20)
    try:
        yield Place(session, port)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
