"""timm's and segmentation_models_pytorch's own tests over our networks, from the sources in the package registry.

timm's run over one network of each kind; with the environment variable `ALL_NETWORKS=1`, over all 41:
`ALL_NETWORKS=1 .venv-clients/bin/python -m pytest -m exhaustive -s tests/clients/test_suites.py`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest
from cannot_apply import TIMM
from clients import client
from shim import timm_or_skip

HERE = Path(__file__).parent
ONE_OF_EACH_KIND = (
    "resnet_mini",
    "seresnet_mini",
    "sknet_mini",
    "sknet_mini_sum",
    "shufflenet_v2_x05",
    "se_shufflenet_v2_x05",
    "sk_shufflenet_v2_x05",
    "sknet26",
    "sknet29",
)


def source_tests(package: str, into: Path) -> Path:
    """The tests and the pyproject.toml of the installed version's source distribution, unpacked; skips when offline."""
    kept = Path(sys.prefix) / "sources"  # fetched once per environment
    pattern = f"{package}-{version(package)}.tar.gz"
    if not [*kept.glob(pattern)]:
        fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", package, "--dest", str(kept)]
        done = subprocess.run([*fetch, f"{package}=={version(package)}"], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the sources of {package} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(kept / pattern) as archive:
        wanted = [m for m in archive.getmembers() if m.name.partition("/")[2].startswith(("tests/", "pyproject.toml"))]
        archive.extractall(into, members=wanted, filter="data")
    return into / pattern.removesuffix(".tar.gz")


def outcomes(report: Path) -> dict[str, str]:
    """From a junit file: the name of each test to passed, failed or skipped."""
    found = {}
    for case in ET.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        failed = tags & {"failure", "error"}
        found[f"{case.get('name')}"] = "failed" if failed else "skipped" if "skipped" in tags else "passed"
    return found


@client("timm's own tests", "timm", "test_models.py of its source distribution over our networks: 95 % pass")
def test_timm_s_own_tests_pass_over_our_networks(tmp_path: Path) -> None:
    timm = timm_or_skip()
    importlib.import_module("selkern.timm")
    ours = timm.list_models(module="timm")
    networks = ours if os.environ.get("ALL_NETWORKS") else [n for n in ONE_OF_EACH_KIND if n in ours]
    root = source_tests("timm", tmp_path)
    report = tmp_path / "report.xml"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        "SELKERN_NETWORKS": ",".join(networks),
        "SELKERN_CANNOT_APPLY": ",".join(TIMM),
    }
    command = [sys.executable, "-m", "pytest", "-p", "timm_networks", "-q", "--tb=short", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, "tests/test_models.py"], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout[-5000:] + done.stderr[-2000:]
    found = outcomes(report)
    counts = Counter(found.values())
    print(f"\ntimm {version('timm')}, {len(networks)} networks: {dict(counts)}")
    failed = sorted(name for name, outcome in found.items() if outcome == "failed")
    assert counts["passed"] >= 0.95 * len(found) > 0, "\n".join([*failed, done.stdout[-5000:]])
