"""How long `selkern explore` takes: from request to answer, and from the slider to the figure in a browser.

python benchmarks/explore.py [--model sknet_mini.digits | sknet50 | ...] [--threads 2] [--count 100]
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from PIL import Image

import selkern
from selkern.data.preprocess import Preprocess
from selkern.data.scenes import CLASSES, SceneSplit
from selkern.explore.pictures import Pictures
from selkern.explore.serve import Server, bind
from selkern.explore.session import Session, to_png
from selkern.measure.timing import Spread

_SLIDE = """async sizes => {
  const slider = document.querySelector(".slider.size input"), image = document.querySelector(".stage img"), seen = [];
  for (const size of sizes) {
    const shown = new Promise(done => new MutationObserver((_, watcher) => { watcher.disconnect(); done(); })
      .observe(image, {attributes: true, attributeFilter: ["src"]}));
    const start = performance.now();
    slider.value = size;
    slider.dispatchEvent(new Event("input"));
    await shown;
    await image.decode();
    await new Promise(requestAnimationFrame);
    seen.push(performance.now() - start);
  }
  return seen;
}"""


def session_of(name: str) -> Session:
    """Bundled weights with digit scenes, or a network with random weights and none."""
    if name == "sknet_mini.digits":
        model = selkern.create_model("sknet_mini", weights="digits").eval()
        assert model.card is not None
        preprocess, classes = Preprocess.from_dict(model.card.preprocess), CLASSES
        pictures = Pictures(preprocess, SceneSplit("test", 48, 0), classes)
    else:
        torch.manual_seed(0)
        model = selkern.create_model(name, num_classes=1000).eval()
        preprocess, classes = Preprocess(size=224, crop=0.875), tuple(map(str, range(1000)))
        pictures = Pictures(preprocess, None, classes)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Session(model, preprocess, classes, pictures, title=name)


class Client:
    """One browser's worth of requests."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The answer's values. Raises RuntimeError for an error."""
        self.connection.request(method, path, body)
        response = self.connection.getresponse()
        values = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(values)
        return values

    def upload(self) -> str:
        """A photo-like picture of 1600 x 1200 px; its name."""
        pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
        return str(self.ask("POST", "/api/upload", to_png(Image.fromarray(pixels).resize((1600, 1200))))["name"])


def in_requests(client: Client, count: int) -> dict[str, list[float]]:
    """Seconds of each request, per kind, every one of another size."""
    units = len(client.ask("GET", "/api/session")["units"])
    picture, draw = client.upload(), random.Random(0)
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "slide": dict,
        "slide, a unit's channels and field shown": lambda: {"unit": units - 1, "field": True},
        "slide, all units forced": lambda: {"choices": {str(u): "0" for u in range(units)}},
    }
    seconds: dict[str, list[float]] = {}
    for kind, more in kinds.items():
        for number in range(count + 3):
            view = {"size": draw.uniform(0.5, 3), "x": draw.random(), "turn": draw.uniform(-90, 90)}
            body = json.dumps({"picture": picture, "view": view, **more()}).encode()
            start = time.perf_counter()
            client.ask("POST", "/api/look", body)
            if number >= 3:
                seconds.setdefault(kind, []).append(time.perf_counter() - start)
    return seconds


def at_once(port: int, picture: str, count: int = 200) -> str:
    """What becomes of so many questions of different askers at once."""

    def ask(number: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps({"picture": picture, "asker": str(number), "view": {"size": 0.5 + number / count}}).encode()
        connection.request("POST", "/api/look", body)
        status = connection.getresponse().status
        connection.close()
        return status

    start = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        statuses = Counter(pool.map(ask, range(count)))
    numbers = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
    return f"{numbers} in {time.perf_counter() - start:.1f} s"


def in_browser(port: int, picture: str, count: int) -> list[float]:
    """Seconds from an event of the slider to the frame with its figures; empty where no Chromium is."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        return []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(f"http://127.0.0.1:{port}/#a.picture={picture}")
        page.locator(".classes li").first.wait_for()
        seen = page.evaluate(_SLIDE, [f"{0.5 + 2.5 * (number + 1) / count:.2f}" for number in range(count)])
        browser.close()
    return [each / 1000 for each in seen]


def main() -> None:
    """Print the figures of one network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sknet_mini.digits", help="bundled weights, or a network of random weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=100, help="requests of each kind")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    session, answers = session_of(options.model), Event()
    listening = bind("127.0.0.1", 0)
    server = Server(session, listening, ready=answers.set)
    thread = Thread(target=server.until_stopped)
    port = listening.getsockname()[1]
    thread.start()
    try:
        answers.wait()
        client = Client(port)
        for _ in range(600):
            if client.ask("GET", "/api/means")["done"]:
                break
            time.sleep(0.1)
        seconds = in_requests(client, options.count)
        picture = client.upload()  # here: the connection does not outlive the browser's turn
        seconds["slider to figure in Chromium"] = in_browser(port, picture, options.count)
        crowd = at_once(port, picture)
    finally:
        server.should_exit = True
        thread.join()
    print(f"{options.model}, {session.preprocess.size} px, torch {torch.__version__}, {options.threads} thread(s), ms")
    for kind, each in seconds.items():
        if each:
            spread = Spread.of(each)
            worst = sorted(each)[int(0.95 * len(each))]
            numbers = f"median {1000 * spread.median:6.1f}, 95 % below {1000 * worst:6.1f}, n {len(each)}"
            print(f"  {kind:42} {numbers}")
    print(f"  {'200 questions at once, by HTTP status':42} {crowd}")


if __name__ == "__main__":
    main()
