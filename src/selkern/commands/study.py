"""The command that compares networks: study.

It takes the words after the command's name, calls one function, prints what it returns, and gives the exit code.
Nothing heavy is imported before it is needed.
"""

from __future__ import annotations


def study(argv: list[str]) -> int:
    """`selkern study`."""
    from selkern.cli_options import parse
    from selkern.study.options import StudyOptions

    options = parse(StudyOptions, argv, "study")
    from selkern.study.conduct import conduct

    done = conduct(options)
    print(done.text)
    print(f"written: {', '.join(map(str, done.files))}")
    return 0
