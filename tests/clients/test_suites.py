"""timm's and segmentation_models_pytorch's own tests over our networks, from the sources in the package registry.

Of timm's alone: `.venv-clients/bin/python -m pytest -m exhaustive -s tests/clients/test_suites.py -k timm`, over all 41
networks that `import selkern.timm` registers; with `NETWORKS=sknet_mini,sknet50` in front, over these.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from cannot_apply import TIMM
from clients import client
from shim import timm_or_skip

HERE = Path(__file__).parent
PARTS = 4  # of our networks, so that both workers have some


def source_tests(package: str, into: Path) -> Path:
    """The tests and the pyproject.toml of the installed version's source distribution, unpacked; skips when offline."""
    name = f"{package}-{version(package)}"
    kept = Path(sys.prefix) / f"{name}.tar.gz"  # fetched once per environment
    if not kept.exists():
        fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", package, "--dest", str(into)]
        done = subprocess.run([*fetch, f"{package}=={version(package)}"], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the sources of {package} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
        shutil.copy(into / kept.name, partial := kept.with_suffix(f".{os.getpid()}"))
        partial.replace(kept)  # at once, as another worker may want it too
    with tarfile.open(kept) as archive:
        wanted = [m for m in archive.getmembers() if m.name.partition("/")[2].startswith(("tests/", "pyproject.toml"))]
        archive.extractall(into, members=wanted, filter="data")
    return into / name


def outcomes(report: Path) -> dict[str, str]:
    """From a junit file: the name of each test to passed, failed or skipped."""
    result = {}
    for case in ET.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        failed = tags & {"failure", "error"}
        result[f"{case.get('name')}"] = "failed" if failed else "skipped" if "skipped" in tags else "passed"
    return result


def run_pytest(root: Path, plugin: str, tests: str, **environment: str) -> str:
    """Other people's tests in a process of their own, with a plugin of this folder; returns what they print."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    command = [sys.executable, "-m", "pytest", "-p", plugin, "-q", "--tb=short", "--junitxml=report.xml", tests]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    printed = done.stdout[-5000:] + done.stderr[-2000:]
    assert done.returncode in (0, 1), printed
    return printed


def networks() -> list[str]:
    """The names that `import selkern.timm` registers; the environment variable NETWORKS takes some of them."""
    timm = timm_or_skip()
    importlib.import_module("selkern.timm")
    ours = timm.list_models(module="timm")
    return [name for name in ours if name in os.environ.get("NETWORKS", ",".join(ours)).split(",")]


@client("timm's own tests", "timm", "test_models.py of its source distribution over our networks: 95 % pass")
@pytest.mark.parametrize("part", range(PARTS))
def test_timm_s_own_tests_pass_over_our_networks(part: int, tmp_path: Path, cases: int | None) -> None:
    """Over one network of each part, as many differ little; over all with `--cases 0`."""
    names = networks()
    if not (chosen := names[part::PARTS] if cases == 0 else names[part * len(names) // PARTS :][:1]):
        pytest.skip("NETWORKS names too few for this part")
    root = source_tests("timm", tmp_path)
    settings = {"SELKERN_NETWORKS": ",".join(chosen), "SELKERN_CANNOT_APPLY": ",".join(TIMM)}
    done = run_pytest(root, "timm_networks", "tests/test_models.py", **settings)
    result = outcomes(root / "report.xml")
    counts = Counter(result.values())
    print(f"\ntimm {version('timm')}, {len(chosen)} networks: {dict(counts)}")
    failed = sorted(name for name, outcome in result.items() if outcome == "failed")
    assert counts["passed"] >= 0.95 * len(result) > 0, "\n".join([*failed, done])


SMP = "segmentation_models_pytorch's own tests"
ENCODERS = ("sknet26", "seresnext26_32x4d", "sk_shufflenet_v2_x05")
DECODERS = [  # all that take convolutional encoders
    "unet",
    "unetplusplus",
    "manet",
    "linknet",
    "fpn",
    "pspnet",
    "pan",
    "deeplabv3",
    "deeplabv3plus",
    "upernet",
    "segformer",
]


@client(
    SMP,
    "segmentation_models_pytorch",
    "test_base.py of its source distribution with an encoder of ours, and what its other tests ask of encoders",
    "its source distribution holds its tests of losses, preprocessing and saved models alone: the rest is ours",
)
def test_smp_s_own_tests_pass_with_an_encoder_of_ours(tmp_path: Path) -> None:
    root = source_tests("segmentation_models_pytorch", tmp_path)
    done = run_pytest(root, "smp_encoder", "tests/test_base.py", SELKERN_ENCODER="tu-sknet26")
    result = outcomes(root / "report.xml")
    assert result, done
    assert set(result.values()) == {"passed"}, done


@client(SMP, "segmentation_models_pytorch", "")
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_maps_of_every_stride(name: str) -> None:
    importlib.import_module("selkern.timm")
    smp = importlib.import_module("segmentation_models_pytorch")
    for options in ({"depth": 3}, {"depth": 4}, {"in_channels": 4}, {"output_stride": 8}, {"output_stride": 16}):
        encoder = smp.encoders.get_encoder(f"tu-{name}", weights=None, **{"in_channels": 3, **options})
        depth, least = options.get("depth", 5), options.get("output_stride", 32)
        x = torch.rand(1, options.get("in_channels", 3), 64, 96)
        maps = encoder(x)  # in training, a batch of one
        assert [64 // m.shape[2] for m in maps] == [min(2**level, least) for level in range(depth + 1)]
        assert [m.shape[1] for m in maps] == encoder.out_channels
        torch.autograd.backward(maps[-1].mean())


@client(SMP, "segmentation_models_pytorch", "")
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_over_an_encoder_of_ours(decoder: str, tmp_path: Path) -> None:
    importlib.import_module("selkern.timm")
    smp = importlib.import_module("segmentation_models_pytorch")
    model = smp.create_model(decoder, "tu-sk_shufflenet_v2_x05", encoder_weights=None, classes=2)
    x = torch.rand(3, 3, 128, 128)
    torch.autograd.backward(model(x).square().mean())
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert not any(n.startswith(("encoder.model.stages_0", "encoder.model.stem")) for n in unused)
    model.eval().save_pretrained(str(tmp_path))
    with torch.no_grad():
        want = model(x)
        assert want.shape == (3, 2, 128, 128)
        torch.testing.assert_close(smp.from_pretrained(str(tmp_path)).eval()(x), want)
        traced: Any = torch.jit.trace(model, (x[:2],))  # type: ignore[no-untyped-call]
        torch.testing.assert_close(traced(x), want, rtol=1e-3, atol=1e-4)
