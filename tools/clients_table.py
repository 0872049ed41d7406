"""docs/clients.md: which tools our layers and networks work under, from the results of the exhaustive tests.

python tools/clients_table.py RESULTS.xml           write the page from pytest's --junitxml file
python tools/clients_table.py --check RESULTS.xml   end with 1 unless the page is what these results give
"""

from __future__ import annotations

import difflib
import importlib
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "clients.md"
sys.path[:0] = [str(ROOT / "tests" / "clients"), str(ROOT / "tests")]

from cannot_apply import TIMM  # noqa: E402
from clients import CLIENTS, JOBS, Client  # noqa: E402

HEAD = """# Clients

Tools that people put our layers and networks into, each with a short real job over the layers and one network of each
kind, in the three memory modes where the tool trains or traces. `make clients` installs the tools in `.venv-clients`
and runs the jobs (`tests/clients/`), whose results `python tools/clients_table.py` writes here. Versions are those of
`constraints.txt` and `constraints-clients.txt`.

| client | version | what the job does | works | why, how |
|---|---|---|---|---|
"""

LEFT_OUT = """
Of timm's tests over a network, these are left out, as they cannot apply; of all others at least 95 % pass:

"""


@dataclass
class Outcome:
    """Of all the tests of one client."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)

    def words(self) -> str:
        """Works, in part, or fails, and in how many cases."""
        ran = self.counts["passed"] + self.counts["failed"]
        word = "not run" if not ran else "works" if not self.counts["failed"] else "in part"
        word = "fails" if ran and not self.counts["passed"] else word
        return f"{word}: {self.counts['passed']} of {ran}"


def known() -> dict[str, Client]:
    """The clients that the tests name, in the order of the tests."""
    for path in sorted((ROOT / "tests" / "clients").glob("test_*.py")):
        importlib.import_module(path.stem)
    return CLIENTS


def read(report: Path) -> dict[str, Outcome]:
    """The outcome of each client's tests in a junit file. A failure that a test expects counts as one."""
    result: dict[str, Outcome] = defaultdict(Outcome)
    for case in ET.parse(report).iter("testcase"):
        test = (case.get("name") or "").partition("[")[0]
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        if test not in JOBS:
            continue
        outcome = result[JOBS[test]]
        if any(child.tag == "skipped" and child.get("type") != "pytest.xfail" for child in bad):
            continue  # it did not run
        outcome.counts["failed" if bad else "passed"] += 1
        for child in bad:
            lines = (child.get("message") or "").strip().splitlines() or ["?"]
            reason = lines[0] if child.tag == "skipped" else f"`{lines[0][:150]}`"
            if reason not in outcome.reasons:
                outcome.reasons.append(reason)
    return result


def row(client: Client, outcome: Outcome) -> str:
    """One line of the table."""
    why = "; ".join(filter(None, [client.how, *outcome.reasons])).replace("|", "\\|")
    return f"| {client.name} | {client.version} | {client.job} | {outcome.words()} | {why} |\n"


def page(result: dict[str, Outcome]) -> str:
    """docs/clients.md as it should be."""
    rows = "".join(row(client, result[name]) for name, client in known().items())
    return HEAD + rows + LEFT_OUT + "".join(f"- `{test}`: {reason}.\n" for test, reason in TIMM.items())


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it; what to do is printed on stderr."""
    check, files = "--check" in arguments, [Path(word) for word in arguments if word != "--check"]
    if len(files) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    known()
    new, old = page(read(files[0])), PAGE.read_text() if PAGE.exists() else ""
    if not check:
        PAGE.write_text(new)
        return 0
    if new == old:
        return 0
    sys.stderr.writelines(
        difflib.unified_diff(old.splitlines(True), new.splitlines(True), "docs/clients.md", "results")
    )
    print("docs/clients.md is not what the tests gave: make clients-table, and commit it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
