"""``selkern data import``: from pictures with boxes to images of single objects."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from selkern.progress import Progress

if TYPE_CHECKING:
    from selkern.data.crops import Imported

_SHOWN = 20  # classes in the table, and reasons below it; --json has all
_LONGEST = 40  # characters of a class name in it


def import_(argv: list[str]) -> int:
    """`selkern data import`; 3 where nothing can be imported."""
    from selkern.cli_options import DataImportOptions, parse
    from selkern.data.crops import import_boxes
    from selkern.data.objects import Wanted

    options = parse(DataImportOptions, argv, "data import")
    wanted = Wanted(
        crop=options.crop,
        size=options.size,
        margin=options.margin,
        least=options.least,
        most=options.most,
        leave_out=options.leave_out,
        splits=options.splits,
        group=options.group,
        seed=options.seed,
        white_level=options.white_level,
    )
    with Progress("reading annotations", unit="pictures") as line:
        done = import_boxes(
            options.format,
            options.folder.expanduser(),
            options.to.expanduser(),
            wanted,
            stage=line.show,
            progress=line.advance,
        )
    print(json.dumps(done.to_dict(), ensure_ascii=False) if options.json else "\n".join(_text(done)))
    return 0


def _text(done: Imported) -> Iterator[str]:
    crops = sum(sum(counts.values()) for counts in done.counts.values())
    kind = "cut tightly: true size is lost" if done.size is None else f"windows of {done.size} px: true size is kept"
    yield f"{done.target}: {crops:,} crops of {done.pictures:,} pictures, {kind}"
    yield ""
    yield from _table(done.counts)
    if done.left_out:
        yield f"\nleft out: {len(done.left_out):,}, listed in {done.target / 'left_out.csv'}"
        reasons = Counter(each.reason for each in done.left_out).most_common()
        first = {each.reason: each.where for each in reversed(done.left_out)}
        for reason, count in reasons[:_SHOWN]:
            yield f"{count:>8,}  {reason}, such as {first[reason]}"
        if len(reasons) > _SHOWN:
            yield f"{'':8}  and {len(reasons) - _SHOWN:,} more reasons"
    yield ""
    yield from (f"note: {note}" for note in done.notes)
    target = shlex.quote(str(done.target))
    # Random parts of an image, enlarged, would take away the size that a window keeps.
    shown = "" if done.size is None else f" --image-size {done.size} --eval-crop 1"
    crop = "" if done.size is None else " --crop pad"
    yield "\nnext:"
    yield f"  selkern data check {target} --sheet sheet.png{shown}"
    yield f"  selkern train --data {target}{shown}{crop}"
    if done.size is not None:
        yield f"  selkern analyze latest --boxes {shlex.quote(str(done.target / 'boxes.csv'))}"


def _table(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    """Crops of each class and split."""
    classes = Counter[str]()
    for found in counts.values():
        classes.update(found)
    shown = sorted(name for name, _ in classes.most_common(_SHOWN))
    rows = [["class", *counts]]
    for name in shown:
        short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        rows.append([short, *(f"{found.get(name, 0):,}" for found in counts.values())])
    if len(classes) > len(shown):
        others = classes.keys() - set(shown)
        rest = (f"{sum(found.get(name, 0) for name in others):,}" for found in counts.values())
        rows.append([f"{len(others):,} more", *rest])
    rows.append(["all", *(f"{sum(found.values()):,}" for found in counts.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        yield "   ".join((f"{row[0]:{widths[0]}}", *cells))
