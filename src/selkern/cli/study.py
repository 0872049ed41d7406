"""`selkern study`: networks compared, each trained with several seeds."""

from __future__ import annotations

from selkern.cli.parse import parse


def main(argv: list[str]) -> int:
    """`selkern study`."""
    from selkern.study.options import StudyOptions

    options = parse(StudyOptions, argv, "study")
    from selkern.study.conduct import conduct

    done = conduct(options)
    print(done.text)
    print(f"written: {', '.join(map(str, done.files))}")
    return 0
