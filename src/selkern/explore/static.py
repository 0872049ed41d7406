"""The page as a folder of files for any web host: pictures chosen beforehand, at a grid of sizes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from selkern.errors import ResourceError, UsageError
from selkern.explore.guard import CONTENT
from selkern.explore.session import Session, to_png
from selkern.explore.view import RANGES, View
from selkern.io import write_atomic

PICTURES = 12  # of the run that are shown where none are named
_WAITING = "Loading the network's facts&hellip;"  # what the page says until its script runs
_STEPS = 24  # from the smallest size to the largest


def sizes() -> list[float]:
    """The sizes that are computed, in equal ratios, 1 among them."""
    steps = np.geomspace(*RANGES["size"], _STEPS + 1).round(2).tolist()
    return sorted({*steps, 1.0})


def static_names(session: Session) -> list[str]:
    """The pictures that are shown: the user's files, else some of the run's, evenly over the classes.

    Raises:
        UsageError: there are none.
    """
    offered = session.pictures.offered
    if session.pictures.files:
        return list(session.pictures.files)
    if not offered:
        raise UsageError("no pictures to show", "--static", "name some by --pictures, or give --data")
    places = np.linspace(0, len(offered) - 1, min(PICTURES, len(offered))).round().astype(int)
    return [f"r{offered[place]}" for place in dict.fromkeys(places.tolist())]


def clear(folder: Path) -> None:
    """Take away what was written of a page that is not finished."""
    for part in ("page", "data"):
        shutil.rmtree(folder / part, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make the folder, or take an empty one.

    Raises:
        UsageError: something is in it.
        ResourceError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError("the folder is not empty", f"--static {folder}", "give a new one")
        (folder / "page").mkdir()
        (folder / "data").mkdir()
    except FileExistsError as error:
        raise UsageError("there is a file of this name", f"--static {folder}", "give a new folder") from error
    except OSError as error:
        what = f"cannot make the folder ({error.strerror})"
        raise ResourceError(what, f"--static {folder}", "give another folder") from error


def write_static(
    session: Session, folder: Path, names: Sequence[str], *, seen: Callable[[int], object] = lambda _: None
) -> Path:
    """Write the page and what it shows; its index.html.

    Args:
        folder: as `make_folder` leaves it.
        names: of the pictures.
        seen: called with 1 after every picture at a size.
    """
    for _ in session.warm():
        pass
    for name in names:
        place = folder / "data" / name
        place.mkdir()
        write_atomic(place / "picture.png", to_png(session.pictures.get(name).cut))
        for size in sizes():
            _write_json(place / f"{size:.2f}.json", session.look_at_all(name, View(size=size)))
            seen(1)
    facts = session.facts()
    for kind in ("pictures", "added"):
        facts[kind] = [each for each in facts[kind] if each["name"] in names]
    # Remarks are for whoever exports; of the sliders, size alone has its figures in the folder.
    facts |= {"sizes": sizes(), "ranges": {"size": list(RANGES["size"])}, "notes": []}
    _write_json(folder / "data" / "session.json", facts)
    _write_json(folder / "data" / "means.json", session.mean_facts())
    for file in files("selkern.explore").joinpath("page").iterdir():
        if file.name != "index.html":
            write_atomic(folder / "page" / file.name, file.read_bytes())
    page = folder / "index.html"
    write_atomic(page, _as_static(files("selkern.explore").joinpath("page/index.html").read_text(encoding="utf-8")))
    return page


def _as_static(page: str) -> str:
    """The page marked as one without a server, which forbids requests elsewhere by itself."""
    policy = CONTENT.partition("; frame-ancestors")[0]  # which a page cannot say of itself
    head = f'<head>\n<meta http-equiv="Content-Security-Policy" content="{policy}">'
    hint = f"{_WAITING} Opened from a disk it waits in vain: it takes a web server, <code>python -m http.server</code>."
    return page.replace("<html ", "<html data-static ", 1).replace("<head>", head, 1).replace(_WAITING, hint, 1)


def _write_json(path: Path, values: Any) -> None:
    write_atomic(path, json.dumps(values, separators=(",", ":"), allow_nan=False))
