"""docs/clients.md names the clients that the tests have, and their jobs as the tests list them."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import clients_table  # noqa: E402


def test_the_table_is_of_the_clients_that_the_tests_have() -> None:
    lines = [line for line in clients_table.PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    assert [(cells[0], cells[2]) for cells in rows] == [(c.name, c.job) for c in clients_table.known().values()]


def test_every_pinned_client_has_an_exact_version() -> None:
    lines = (ROOT / "constraints-clients.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    base = (ROOT / "constraints.txt").read_text().splitlines()
    installed = pins.keys() | {line.split("==")[0] for line in base if "==" in line}
    assert {client.package for client in clients_table.known().values()} <= installed
