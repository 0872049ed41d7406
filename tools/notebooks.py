"""Run the notebooks of docs/notebooks and write them as pages with their outputs, into build/notebooks.

python tools/notebooks.py [NAME...]

The site takes the pages from there (tools/site_hooks.py). A cell that fails ends this with its traceback. A notebook
that ran with the same sources is not run again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert.exporters import MarkdownExporter
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS, MADE = ROOT / "docs" / "notebooks", ROOT / "build" / "notebooks"
# Run before the cells, and not shown: timm beside a torchvision that cannot be imported, as in the tests; no live bars.
BEFORE = f"""
import sys, warnings
sys.path.insert(0, {str(ROOT / "tests")!r})
from shim import fix_torchvision
fix_torchvision()
warnings.filterwarnings("ignore", message="IProgress not found")
"""
LIMIT = 300  # seconds for a cell
WIDTH = 110  # of sentences that a cell prints; tables are as wide as they are


def key(path: Path) -> str:
    """Of all that the outputs of a notebook depend on."""
    files = [path, Path(__file__), *sorted((ROOT / "src").rglob("*.py"))]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """What a cell printed as one piece, on whichever stream, and its other outputs."""
    lines = "".join(each.text for each in outputs if each.output_type == "stream").splitlines()
    printed = "\n".join(line if "  " in line.strip() else textwrap.fill(line, WIDTH) for line in lines)
    rest = [each for each in outputs if each.output_type != "stream"]
    return [nbformat.v4.new_output("stream", text=printed), *rest] if printed else rest


def write_page(path: Path) -> None:
    """Run one notebook and write its page, its figures, and last what they depend on."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BEFORE))
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=LIMIT, resources=where, extra_arguments=["--log-level=ERROR"]).execute()
    del notebook.cells[0]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, {"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
    )
    note = f"*[This notebook]({path.name}) was run when the page was made.*"
    title, _, rest = text.replace("![png](", "![The figure that the cell draws](").partition("\n\n")
    shutil.rmtree(MADE / f"{path.stem}_files", ignore_errors=True)
    (MADE / f"{path.stem}_files").mkdir(parents=True)
    for name, content in resources["outputs"].items():
        (MADE / name).write_bytes(content)
    (MADE / f"{path.stem}.md").write_text(f"{title}\n\n{note}\n\n{rest}", encoding="utf-8")
    (MADE / f"{path.stem}.key").write_text(key(path), encoding="utf-8")


def main(names: list[str]) -> int:
    """Every notebook, or those that are named."""
    os.environ |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        stamp = MADE / f"{path.stem}.key"
        if (names and path.stem not in names) or (stamp.exists() and stamp.read_text() == key(path)):
            continue
        begin = time.monotonic()
        try:
            write_page(path)
        except CellExecutionError as error:
            print(f"{path.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 1
        print(f"{path.relative_to(ROOT)}: {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
