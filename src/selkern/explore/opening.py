"""From a run or weights file to a session: the network once, and the pictures that there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from selkern.data.table_options import TableOptions
from selkern.errors import DataError, ResourceError
from selkern.explore.pictures import Pictures
from selkern.explore.session import Session
from selkern.inference.images import Chosen, choose_images
from selkern.inference.network import Loaded

NO_PICTURES = "no pictures come with these weights: add pictures of your own, or give --data"


def open_session(
    loaded: Loaded,
    data: str | None = None,
    split: str = "auto",
    *,
    files: Sequence[Path] = (),
    table: TableOptions | None = None,
    say: Callable[[str], object] = lambda _line: None,
) -> Session:
    """A session of a network that is loaded.

    Args:
        data: where its pictures come from; None takes the run's, the bundled digits where the weights were trained on
            them, or none.
        split: as for `choose_images`.
        files: pictures that are on the page from the start, beside those of the data.
        say: called with remarks on the pictures.

    Raises:
        DataError, UsageError: as `choose_images` says, of data that were asked for; or none of the files can be read.
    """
    if data is None and loaded.run is None and loaded.card.source.get("data") == "digits":
        data = "digits"
    notes: list[str] = []
    chosen: Chosen | None = None
    if data is None and loaded.run is None and loaded.source is None:
        notes.append(NO_PICTURES)
    else:
        try:
            chosen = choose_images(loaded, data, split, on_bad="skip", table=table)
        except (DataError, ResourceError) as error:
            if data is not None:
                raise
            notes.append(f"{error.what}: add pictures of your own, or give --data")
    for line in [*notes, *(chosen.lines if chosen else ())]:
        say(line if chosen else f"note: {line}")
    classes = loaded.card.classes
    pictures = Pictures(loaded.preprocess, chosen.split if chosen else None, classes)
    for file in files:
        try:
            pictures.add_file(file)
        except DataError as error:
            if file == files[-1] and not pictures.files:
                raise
            notes.append(f"{error.what}: {file.name}")
            say(f"note: {notes[-1]}")
    title = loaded.run.path.name if loaded.run else loaded.path.stem or loaded.card.model
    notes += [line.removeprefix("note: ") for line in chosen.lines] if chosen else []
    if not (
        session := Session(loaded.model, loaded.preprocess, classes, pictures, title=title, notes=tuple(notes))
    ).units:
        session.notes = (*session.notes, "this network has no selective-kernel units: there is a prediction alone")
    return session
