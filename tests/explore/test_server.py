"""The explorer over HTTP: who may ask, what is refused, and that nothing that is asked or sent ends it."""

from __future__ import annotations

import http.client
import io
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from guarantees.pictures import broken, sound
from PIL import Image
from torch import Tensor, nn

import selkern
from explore.serving import SCENES, Place, digits_session, served
from selkern.errors import ResourceError, UsageError
from selkern.explore import server
from selkern.explore.guard import Guard
from selkern.explore.serve import PORT, address, bind, open_browser, token_for

TOKEN = "a-token_of-the-test"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with served(digits_session()) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Place]:
    with served(digits_session(), TOKEN) as running:
        yield running


def picture(size: tuple[int, int] = (70, 50), kind: str = "PNG", seed: int = 0) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def is_alive(place: Place) -> bool:
    return place.look().status == 200


def test_the_page_and_its_files_forbid_requests_to_anywhere_else(place: Place) -> None:
    for path in ("/", *(f"/page/{name}" for name in ("app.js", "style.css", "icon.svg"))):
        answer = place.ask("GET", path)
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
        assert b"https://" not in answer.body
    for path in ("/page/none.js", "/page/..%2fsession.py", "/page/%2e%2e/session.py", "/none", "/page/"):
        assert place.ask("GET", path).status == 404
    assert place.ask("DELETE", "/").status == 405


def test_facts_means_and_pictures(place: Place) -> None:
    facts = place.ask("GET", "/api/session").json
    assert [unit["label"] for unit in facts["units"]] == ["SK_2_1", "SK_2_2", "SK_3_1", "SK_3_2", "SK_4_1", "SK_4_2"]
    assert sorted(each["file"] for each in facts["pictures"]) == sorted(f"digit scene {i}" for i in range(SCENES))
    shown = place.ask("GET", f"/api/picture/{facts['pictures'][0]['name']}")
    assert Image.open(io.BytesIO(shown.body)).size == (48, 48)
    for _ in range(100):
        if (means := place.ask("GET", "/api/means").json)["done"]:
            break
        time.sleep(0.1)
    assert means["n"] == means["of"] == len(facts["pictures"])
    assert place.ask("GET", "/api/picture/r999").status == 422


def test_a_picture_that_is_sent_is_looked_at_and_never_written_down(place: Place) -> None:
    written: list[Any] = []
    watching = [True]

    def note(event: str, details: Any) -> None:
        if watching[0] and event == "open" and isinstance(details[2], int) and details[2] & 0o3:
            written.append(details)

    sys.addaudithook(note)
    try:
        data = picture()
        name = place.ask("POST", "/api/upload", data).json["name"]
        assert name == place.ask("POST", "/api/upload", data).json["name"]
        answer = place.look(name, unit=0, field=True)
    finally:
        watching[0] = False
    assert answer.status == 200
    assert len(answer.json["top"]) == 5
    assert written == []


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", ""]
)
def test_another_name_for_this_machine_is_refused(host: str, place: Place) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/session"), ("POST", "/api/look")):
        assert place.ask(method, path, headers={"Host": host.format(port=place.port)}).status == 403
    assert place.ask("GET", "/", headers={"Host": f"localhost:{place.port}"}).status == 200


def test_the_address_that_is_listened_at_is_a_name_of_ours() -> None:
    with bind("127.0.0.5", 0) as listening:
        guard = server.make_app(digits_session(), host="127.0.0.5", port=listening.getsockname()[1])
        assert isinstance(guard, Guard)
        assert f"127.0.0.5:{listening.getsockname()[1]}" in guard.hosts
    assert "localhost" in Guard(guard, host="::1", port=80).hosts
    assert "localhost" not in Guard(guard, host="::1", port=81).hosts


def test_a_page_elsewhere_may_open_ours_and_ask_nothing(place: Place) -> None:
    body = {"picture": "r0"}
    theirs: list[dict[str, str]] = [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ]
    for headers in theirs:
        assert place.ask("POST", "/api/look", body, headers).status == 403
        assert place.ask("POST", "/api/upload", picture(), headers).status == 403
        assert place.ask("GET", "/api/session", headers=headers).status == 403
    assert place.ask("GET", "/", headers={"Sec-Fetch-Site": "cross-site"}).status == 200
    ours = {"Origin": f"http://127.0.0.1:{place.port}", "Sec-Fetch-Site": "same-origin"}
    assert place.ask("POST", "/api/look", body, ours).status == 200


def test_a_token_is_asked_for_once_and_kept_as_a_cookie(locked: Place) -> None:
    for path in ("/", "/?token=", "/?token=wrong", f"/api/session?token={TOKEN}", "/page/app.js"):
        assert locked.ask("GET", path).status == 403
    assert locked.look().status == 403
    opened = locked.ask("GET", f"/?token={TOKEN}")
    assert (opened.status, opened.headers["location"]) == (303, "/")
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    kept = {"Cookie": cookie.partition(";")[0]}
    assert locked.ask("GET", "/", headers=kept).status == 200
    assert locked.ask("POST", "/api/look", {"picture": "r0"}, kept).status == 200
    assert locked.ask("POST", "/api/look", {"picture": "r0"}, {**kept, "Origin": "http://evil.example"}).status == 403
    assert locked.ask("GET", "/", headers={"Cookie": f"selkern-{locked.port}=ä; =;;"}).status == 403
    # Under a name of the machine's own, which nobody can list.
    assert locked.ask("GET", "/", headers={**kept, "Host": f"machine.lan:{locked.port}"}).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"picture": "r0", "number": "1"}', b"[" * 60_000, b"\xff", b"{}"])
def test_questions_that_are_none(body: bytes, place: Place) -> None:
    answer = place.ask("POST", "/api/look", body)
    assert answer.status == 400
    assert set(answer.json["error"]) == {"what", "where", "fix"}


def test_what_is_too_large_is_refused_before_it_is_sent(place: Place) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=20)
    connection.putrequest("POST", "/api/upload")
    connection.putheader("Content-Length", str(server.MOST_UPLOADED + 1))
    connection.endheaders()  # and not a byte of the body
    assert connection.getresponse().status == 413
    connection.close()
    assert place.ask("POST", "/api/look", b"x" * (1 << 17)).status == 413
    assert place.ask("POST", "/api/upload", b"x", headers={"Content-Length": "9" * 5000}).status in (400, 413)
    assert is_alive(place)


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_UPLOADED", 100_000)
    with socket.create_connection(("127.0.0.1", place.port), timeout=20) as sent:
        head = f"POST /api/upload HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        sent.sendall(head.encode())
        for _ in range(3):
            sent.sendall(b"c350\r\n" + b"x" * 50_000 + b"\r\n")
        assert b" 413 " in sent.recv(4096)
    assert is_alive(place)


def test_hostile_pictures_get_a_line_each_and_the_server_lives(place: Place) -> None:
    count = Counter[bool]()
    for each in (*sound(), *broken()):
        answer = place.ask("POST", "/api/upload", each.data)
        assert answer.status in (200, 422), each.name
        count[answer.status == 200] += 1
        if each.readable is not None:
            assert (answer.status == 200) == each.readable, each.name
        if answer.status == 200:
            looked = place.look(answer.json["name"], view={"size": 0.5})
            assert looked.status == 200, each.name
        else:
            assert answer.json["error"]["what"], each.name
            assert "\n" not in answer.json["error"]["what"]
    assert count[True] > 30
    assert count[False] > 30
    assert is_alive(place)


def test_twenty_thousand_pixels_a_side_are_refused_by_their_header(place: Place) -> None:
    data = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(data, "PNG")
    answer = place.ask("POST", "/api/upload", data.getvalue())
    assert answer.status == 422
    assert answer.json["error"]["what"] == "image too large"


def test_two_hundred_at_once(place: Place) -> None:
    """Tabs of their own, each its newest question; the queue is shorter than that, and says so."""

    def ask(number: int) -> int:
        return place.look("r1", asker=f"tab {number}", number=1, view={"size": 1 + number / 200}).status

    with ThreadPoolExecutor(200) as pool:
        statuses = Counter(pool.map(ask, range(200)))
    assert set(statuses) <= {200, 503}
    assert statuses[200] >= 1
    assert is_alive(place)


def test_forty_uploads_at_once(place: Place) -> None:
    with ThreadPoolExecutor(40) as pool:
        sent = [pool.submit(place.ask, "POST", "/api/upload", picture(seed=seed)) for seed in range(40)]
        statuses = Counter(one.result().status for one in sent)
    assert set(statuses) <= {200, 503}
    assert statuses[200] >= 4
    assert is_alive(place)


class Slow(nn.Module):
    """Takes its time, and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = selkern.create_model("sknet_mini", weights="digits")
        self.passes = 0
        self.seconds = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        time.sleep(self.seconds)
        return self.inside(x)


def test_of_one_asker_the_newest_question_alone_is_computed() -> None:
    model = Slow().eval()
    with served(digits_session(model)) as place:
        while not place.ask("GET", "/api/means").json["done"]:
            time.sleep(0.1)
        model.seconds, before = 0.4, model.passes
        with ThreadPoolExecutor(12) as pool:
            futures = []
            for number in range(12):
                more = {"asker": "a", "number": number, "view": {"size": 1.5 + number / 100}}
                futures.append(pool.submit(place.look, "r0", **more))
                time.sleep(0.03)
            statuses = [future.result().status for future in futures]
        assert statuses[0] == 200  # which was being computed already
        assert statuses[-1] == 200
        assert statuses.count(409) >= 8
        assert model.passes - before == statuses.count(200)
        assert place.look("r0", asker="a", number=3).status == 409  # comes late, by another connection


def test_nothing_is_computed_for_a_browser_that_has_gone() -> None:
    model = Slow().eval()
    with served(digits_session(model)) as place:
        while not place.ask("GET", "/api/means").json["done"]:
            time.sleep(0.1)
        model.seconds, before = 0.5, model.passes
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(place.look, "r0", asker="who stays", view={"size": 2.5})
            time.sleep(0.1)
            for number in range(5):
                body = b'{"picture": "r1", "asker": "%d", "view": {"size": 1.7}}' % number
                head = f"POST /api/look HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\nContent-Length: {len(body)}\r\n\r\n"
                with socket.create_connection(("127.0.0.1", place.port)) as gone:
                    gone.sendall(head.encode() + body)
            assert waiting.result().status == 200
        assert is_alive(place)
        assert model.passes - before == 1  # of the one that stayed; that of `is_alive` is kept from before


class Raising(nn.Module):
    """A classifier that raises on what is bright, and leaves the program on what is dark."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1:
            raise ArithmeticError("too bright\nfor this network")
        if x.mean() < -1.9:
            raise SystemExit(7)
        return self.head(x.mean(dim=(2, 3)))


def test_a_network_that_raises_is_an_answer() -> None:
    with served(digits_session(Raising().eval())) as place:
        names = []
        for level in (255, 0, 128):
            data = io.BytesIO()
            Image.new("RGB", (60, 60), (level,) * 3).save(data, "PNG")
            names.append(place.ask("POST", "/api/upload", data.getvalue()).json["name"])
        bright, dark, grey = (place.look(name) for name in names)
        assert bright.status == 500
        assert bright.json["error"]["what"] == "the network raised ArithmeticError: too bright"
        assert dark.json["error"]["what"] == "the network raised SystemExit: 7"
        assert grey.status == 200


def test_a_port_that_is_taken() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"the port is taken | --port {port} |") as error:
            bind("127.0.0.1", port)
        assert error.value.exit_code == 5
    with bind("127.0.0.1", None) as first, bind("127.0.0.1", None) as second:
        ports = [one.getsockname()[1] for one in (first, second)]
        assert PORT <= ports[0] < ports[1]


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a b", "", "x" * 300])
def test_an_address_that_is_not_ours(host: str) -> None:
    with pytest.raises(UsageError, match="address"):
        bind(host or "192.0.2.77", None)


def test_a_token_is_made_wherever_others_reach_the_page() -> None:
    assert token_for("127.0.0.1", "") == token_for("localhost", "") == token_for("::1", "") == ""
    assert token_for("127.0.0.1", "mine") == "mine"
    made = token_for("0.0.0.0", "")
    assert len(made) >= 32
    assert made != token_for("0.0.0.0", "")
    assert address("::1", 8421, "") == "http://[::1]:8421/"
    assert address("127.0.0.1", 8421, "mine") == "http://127.0.0.1:8421/?token=mine"
    assert address("0.0.0.0", 8421, "mine") == f"http://{socket.gethostname()}:8421/?token=mine"


def test_a_browser_is_opened_where_there_is_a_screen_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "SSH_TTY"):
        monkeypatch.delenv(name, raising=False)
    open_browser("http://none")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SSH_CONNECTION", "far away")
    open_browser("http://none")
    time.sleep(0.1)
    assert opened == []
    monkeypatch.delenv("SSH_CONNECTION")
    open_browser("http://some")
    for _ in range(50):
        if opened:
            break
        time.sleep(0.02)
    assert opened == ["http://some"]
