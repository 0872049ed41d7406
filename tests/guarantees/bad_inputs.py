"""Inputs as they go wrong in practice, through the real commands: each ends well, or in one line that says what to do.

For every case: it finishes, or it ends with the right exit code and one line `error: what | where | what to do`; never
a traceback, nothing hangs, the user's files stay as they were, and images left out are named in bad_files.csv.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from guarantees import bad_data, bad_images, bad_options, bad_runs, bad_shards, bad_weights
from guarantees.calls import LIMIT, Said, call, faults, fingerprint
from guarantees.cases import Case, Group, Place, run_groups

Call = Callable[[Sequence[str], Path], Said]
GROUPS: dict[str, Group] = {
    "pictures": bad_images.pictures,
    "odd files": bad_images.odd_files,
    "folders": bad_data.folders,
    "tables": bad_data.tables,
    "parquet": bad_data.parquet_files,
    "shards": bad_shards.shards,
    "weights": bad_weights.weights,
    "runs": bad_runs.runs,
    "states": bad_runs.states,
    "options": bad_options.options,
    "outputs": bad_options.outputs,
}


def run_case(case: Case, place: Place, run: Call = call) -> list[str]:
    """What is wrong with how a command takes a case; nothing, if all is as it should be."""
    before = fingerprint(case.untouched or place.input)
    said = run(case.words, place.root)
    result = faults(said, case.codes, case.shows)
    if said.code in (0, 3) and case.check is not None and (wrong := case.check(said)):
        result.append(wrong)
    if said.seconds >= LIMIT:
        result.append(f"took {said.seconds:.0f} s")
    after = fingerprint(case.untouched or place.input)
    result += [
        f"{path} was changed" for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)
    ]
    if result:
        result.append(f"code {said.code}, said: {said.err[-600:]!r}")
    return result


def run_all(groups: Iterable[str], root: Path, every: int = 1, run: Call = call) -> tuple[int, list[str]]:
    """Number of cases, and a paragraph for each that fails. `every` takes every n-th case of a group alone."""
    return run_groups(GROUPS, groups, root, every, lambda case, place: run_case(case, place, run))
