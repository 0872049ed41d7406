"""Count parameters and multiply-adds of every network into the package, for `selkern models`.

    python tools/count_costs.py [--check]

With --check nothing is written; ends with 1 where the file differs from what is counted.
"""

from __future__ import annotations

import json
import sys

from selkern.models import costs
from selkern.models.registry import list_models


def render() -> str:
    """The file, a line for each network."""
    lines = [f"  {json.dumps(name)}: {json.dumps(costs.counted(name))}" for name in list_models()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(words: list[str]) -> int:
    """Write the file, or compare it."""
    text = render()
    if words == ["--check"]:
        if costs.FILE.read_text(encoding="utf-8") == text:
            return 0
        print(f"error: not what is counted | {costs.FILE} | run python tools/count_costs.py", file=sys.stderr)
        return 1
    costs.FILE.write_text(text, encoding="utf-8")
    print(f"{costs.FILE}: {len(list_models())} networks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
