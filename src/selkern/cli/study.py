"""`selkern study`: networks compared, each trained with several seeds."""

from __future__ import annotations

from selkern.cli.parse import parse
from selkern.errors import UsageError


def main(argv: list[str]) -> int:
    """`selkern study`."""
    from selkern.study.options import StudyOptions

    options = parse(StudyOptions, argv, "study")
    if not argv:
        return _list()
    if not options.name:
        raise UsageError("no study is named", "selkern study", "give a file or a name; `selkern study` lists the names")
    from selkern.study.conduct import conduct

    done = conduct(options)
    print(done.text)
    print(f"written: {', '.join(map(str, done.files))}")
    return 0


def _list() -> int:
    """The studies that come with the package, a line each."""
    from selkern.study.plan import FOLDER, load

    for path in sorted(FOLDER.glob("*.yaml")):
        print(f"{path.stem:15}{load(path)[1]['title']}")
    print("\n`selkern study NAME` conducts one; `--short` tries it in about a minute")
    return 0
