"""`import selkern.ultralytics`: our modules in YOLO's files, and selective kernels in a YOLO that is there already."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shim import fix_torchvision
from tiny import ENVIRONMENT, draw_boxes
from torch import Tensor, nn

import selkern
from selkern import cli
from selkern.adapt.unit import SelectiveConv
from selkern.errors import PackageError, UsageError

MISSING = importlib.util.find_spec("ultralytics") is None
needed = pytest.mark.skipif(MISSING, reason="ultralytics is not installed: make clients")
pytestmark = pytest.mark.filterwarnings("ignore", "error:::selkern")  # other people's code warns about itself

# Every program of these tests begins with it: a torchvision built for another torch lacks its operators.
PRELUDE = """
from shim import fix_torchvision
fix_torchvision()
import torchvision
from ultralytics.utils.nms import TorchNMS
torchvision.ops.nms = TorchNMS.nms
"""

OURS = """
nc: 3
scales:
  n: [0.5, 0.5, 1024]
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 3, SelectiveKernel, [128, [3, 5], 2]]
  - [-1, 1, SKAttention, []]
  - [-1, 1, Conv, [128, 3, 1]]
  - [[3, -1], 1, SKFusion, []]
  - [-1, 1, Conv, [128, 3, 2]]
head:
  - [[5, 6], 1, Detect, [nc]]
"""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ultralytics with a folder of its own for its settings, offline, and `selkern.ultralytics`."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("settings")))
        patch.setenv("YOLO_OFFLINE", "true")
        fix_torchvision()
        module = importlib.import_module("selkern.ultralytics")
        nms = importlib.import_module("ultralytics.utils.nms")
        patch.setattr(importlib.import_module("torchvision").ops, "nms", nms.TorchNMS.nms)
        yolo = importlib.import_module("ultralytics").YOLO
        yield SimpleNamespace(ours=module, Yolo=yolo, tasks=importlib.import_module("ultralytics.nn.tasks"))


def stirred(network: Any) -> Any:
    """Norms that do something, so that a wrong place of one would show; in eval mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(std=0.2)
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2)
    return network.eval()


def moved(network: Any) -> Any:
    """As after training: the branches of the units differ."""
    with torch.no_grad():
        for unit in network.modules():
            if isinstance(unit, SelectiveConv):
                for p in unit.further.parameters():
                    p.add_(0.05 * torch.randn_like(p))
    return network


def units(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, SelectiveConv)]


def boxes(network: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        output = network(x)
    return output[0] if isinstance(output, tuple) else output


def selectified(bridge: Any, file: str = "yolov8n.yaml", where: Any = "auto") -> tuple[Any, Any]:
    """A network of random weights as it is, and with selective kernels."""
    plain = stirred(bridge.Yolo(file).model)
    changed = copy.deepcopy(plain)
    importlib.import_module("selkern.ultralytics.training").put_kernels(changed, where=where)
    return plain, changed


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "sk.yaml").write_text(text)
    return str(tmp_path / "sk.yaml")


# Without ultralytics


@pytest.mark.skipif(not MISSING, reason="ultralytics is installed")
def test_without_ultralytics_the_message_says_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PackageError, match=r"ultralytics is not installed \| .* \| pip install ultralytics"):
        importlib.import_module("selkern.ultralytics")
    before = list(sys.argv)
    try:
        assert cli.main(["yolo", "train", "model=yolov8n.yaml"]) == 1
    finally:
        sys.argv[:] = before
    assert "pip install ultralytics" in capsys.readouterr().err


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["yolo", "--help"]) == 0
    assert "selectify=WHERE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [(["val", "selectify=auto"], "selectify is for train alone"), (["train", "selectify="], "selectify is empty")],
)
def test_a_wrong_selectify_is_one_line(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["yolo", *words]) == 2
    assert part in capsys.readouterr().err


# Files that name our modules


@needed
def test_channels_are_inferred_and_scaled_by_the_width(bridge: Any, tmp_path: Path) -> None:
    network = bridge.Yolo(written(tmp_path, OURS), task="detect").model
    unit, attention, fusion = network.model[2], network.model[3], network.model[5]
    assert [m.stride if hasattr(m, "stride") else None for m in unit] == [None, None] or len(unit) == 2  # depth 0.5
    assert (unit[0].branches[0].conv.in_channels, unit[0].branches[0].conv.out_channels) == (32, 64)
    assert (attention.channel, fusion.channels) == (64, 64)
    assert [layer.i for layer in network.model] == list(range(8))
    assert network.save == [3, 5, 6]
    assert network.model[7].stride.tolist() == [8, 16]


@needed
def test_a_file_without_our_names_is_read_by_ultralytics_alone(bridge: Any) -> None:
    torch.manual_seed(0)
    ours = bridge.Yolo("yolov8n.yaml").model
    torch.manual_seed(0)
    layers, save = bridge.tasks.parse_model.__wrapped__(copy.deepcopy(ours.yaml), 3, False)
    assert save == ours.save
    assert all(torch.equal(a, b) for a, b in zip(layers[0].parameters(), ours.model[0].parameters(), strict=True))


@needed
@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("[-1, 1, SKAttention, [64]]", ["keeps its 64 channels, the file asks for 32", "row 3"]),
        ("[-1, 1, SKFusion, []]", ["SKFusion makes one map of several", "row 3"]),
        ("[[1, -1], 1, SKFusion, []]", ["its maps have 32, 64 channels", "row 3"]),
        ("[[1, -1], 1, SKAttention, []]", ["SKAttention takes one map", "row 3"]),
        ("[-1, 1, SelectiveKernel, [128, [2]]]", ["odd", "row 3"]),
        ("[-1, 1, SelectiveKernel, [128, [3, 5], 1, 32, 16, 7]]", ["6 arguments", "row 3"]),
        ("[-1, 1, SelectiveKernel, [wide]]", ["'wide' channels", "row 3"]),
    ],
)
def test_a_wrong_row_is_one_line(row: str, parts: list[str], bridge: Any, tmp_path: Path) -> None:
    text = OURS.replace("[-1, 1, SKAttention, []]", row)
    with pytest.raises(UsageError) as raised:
        bridge.Yolo(written(tmp_path, text), task="detect")
    assert all(part in str(raised.value) for part in parts), raised.value


def other_parser(d: Any, channels: int) -> Any:
    return d, channels


def empty_parser(d: Any, ch: int, verbose: bool = True) -> Any:
    return nn.Sequential(), [] * (ch + bool(d) + verbose)


@needed
def test_another_ultralytics_is_told_apart(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = importlib.import_module("selkern.ultralytics.hooks")
    monkeypatch.setattr(bridge.tasks, "parse_model", other_parser)
    with pytest.raises(
        PackageError, match=r"ultralytics \S+ has no .*parse_model\(d, ch, verbose\) \| .* \| pip install"
    ):
        hooks.register()
    monkeypatch.setattr(bridge.tasks, "parse_model", empty_parser)
    with pytest.raises(PackageError, match="cannot read rows of ours"):
        hooks.register()


# Selective kernels in a network that is there


@needed
@pytest.mark.parametrize("where", ["auto", "*", "last 2 stages", "model.8.*"])
def test_a_selectified_yolov8n_is_equal_to_the_bit(where: str, bridge: Any) -> None:
    plain, changed = selectified(bridge, where=where)
    assert units(changed)
    for side in ((96, 160), (64, 64)):
        x = torch.rand(2, 3, *side)
        assert torch.equal(boxes(changed, x), boxes(plain, x))
    with torch.no_grad():
        plain.train(), changed.train()
        outputs = plain(x), changed(x)
    assert all(torch.equal(outputs[0][key], outputs[1][key]) for key in ("boxes", "scores"))


@needed
@pytest.mark.parametrize(
    "file", ["yolov5n.yaml", "yolov9t.yaml", "yolov10n.yaml", "yolo11n.yaml", "yolo26n.yaml", "yolov8n-cls.yaml"]
)
@pytest.mark.exhaustive
def test_other_networks_are_equal_too(file: str, bridge: Any) -> None:
    plain, changed = selectified(bridge, file, "*")
    x = torch.rand(2, 3, 96, 96)
    assert torch.equal(boxes(changed, x), boxes(plain, x))
    fused = copy.deepcopy(moved(changed)).fuse(verbose=False)
    torch.testing.assert_close(boxes(fused, x), boxes(changed, x), rtol=1e-4, atol=1e-2)


@needed
def test_fuse_leaves_the_results_of_units_as_they_are(bridge: Any) -> None:
    _, changed = selectified(bridge, where="*")
    moved(changed)
    x = torch.rand(2, 3, 96, 96)
    fused = copy.deepcopy(changed).fuse(verbose=False)
    assert fused.is_fused()
    assert len(units(fused)) == len(units(changed))
    torch.testing.assert_close(boxes(fused, x), boxes(changed, x), rtol=1e-5, atol=1e-3)
    # One convolution alone: its results are the same to the bit.
    assert torch.equal(changed.model[0](x), fused.model[0](x))


@needed
def test_convolutions_that_are_added_up_stay_as_they_are(bridge: Any) -> None:
    _, changed = selectified(bridge, "yolov9t.yaml", "*")
    merged = [name for name, m in changed.named_modules() if type(m).__name__ == "RepConv"]
    assert merged
    assert not any(name.startswith(f"{m}.") for name in units(changed) for m in merged)


@needed
def test_weights_bring_their_units_into_a_plain_network(bridge: Any) -> None:
    _, changed = selectified(bridge)
    moved(changed)
    again = bridge.tasks.DetectionModel(changed.yaml, verbose=False)
    again.load(changed, verbose=False)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(boxes(again.eval(), x), boxes(changed, x))
    assert all(p.requires_grad for name, p in again.named_parameters() if "dfl" not in name)
    fewer = bridge.tasks.DetectionModel(changed.yaml, nc=2, verbose=False)  # another width of the class branch
    fewer.load(changed, verbose=False)
    assert units(fewer) == units(changed)


@needed
def test_weights_of_a_plain_network_for_a_changed_one_are_refused(bridge: Any) -> None:
    plain, changed = selectified(bridge)
    with pytest.raises(UsageError, match="weights of a plain network for one with selective kernels"):
        changed.load(plain)


@needed
def test_a_pattern_that_matches_nothing_is_one_line(bridge: Any) -> None:
    with pytest.raises(UsageError, match="no convolution matches 'backbone'"):
        selectified(bridge, where="backbone")


# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of a bright square, with its box, for training and validation."""
    root = tmp_path_factory.mktemp("squares")
    draw_boxes(root)
    return root / "data.yaml"


def options(data: Path, folder: Path, **more: Any) -> dict[str, Any]:
    quick = {
        "imgsz": 64,
        "batch": 4,
        "nbs": 4,
        "workers": 0,
        "device": "cpu",
        "plots": False,
        "amp": False,
        "verbose": False,
    }
    return {"data": str(data), "epochs": 1, "project": str(folder), "exist_ok": True, "name": "run", **quick, **more}


KINDS: dict[str, tuple[str, bool]] = {"selectified yolov8n": ("yolov8n.yaml", True), "a file of ours": ("", False)}
Run = Callable[[str], Path]


@pytest.fixture(scope="module")
def runs(bridge: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The folder of a training of two epochs that was stopped after the first, and went on in a new process."""
    done: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in done:
            file, changed = KINDS[kind]
            folder = tmp_path_factory.mktemp("runs")
            model = bridge.Yolo(file or written(folder, OURS), task="detect")
            model.add_callback("on_fit_epoch_end", stop)
            with pytest.raises(Stopped):
                model.train(**options(data, folder, epochs=2), trainer=bridge.ours.trainer() if changed else None)
            folder = folder / "run"
            (folder / "first.pt").write_bytes((folder / "weights" / "last.pt").read_bytes())
            program(f"""
from ultralytics import YOLO
model = YOLO({str(folder / "weights" / "last.pt")!r})
model.train(resume=True)
assert model.trainer.start_epoch == 1
""")
            done[kind] = folder
        return done[kind]

    return run


class Stopped(Exception):
    pass


def stop(_: Any) -> None:
    raise Stopped


def program(text: str) -> str:
    """What a new process prints at the end."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**ENVIRONMENT, **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + text], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def loaded(bridge: Any, folder: Path, name: str = "best.pt") -> Any:
    return bridge.Yolo(folder / "weights" / name)


def has_ours(network: nn.Module) -> bool:
    return bool(units(network)) or any(isinstance(m, selkern.SKAttention) for m in network.modules())


@needed
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_stops_resumes_and_ends(kind: str, runs: Run, bridge: Any) -> None:
    folder = runs(kind)
    assert len((folder / "results.csv").read_text().splitlines()) == 3  # a head and two epochs
    network, first = loaded(bridge, folder, "last.pt").model, bridge.Yolo(folder / "first.pt").model
    assert has_ours(network)
    assert [*network.state_dict()] == [*first.state_dict()]
    apart = {name for name, value in network.state_dict().items() if not torch.equal(value, first.state_dict()[name])}
    gates = {name for name in apart if ".gate." in name or ".fcs." in name}
    assert gates
    if KINDS[kind][1]:
        assert any(".further.0.conv." in name for name in apart)


@needed
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_best_pt_validates_predicts_and_trains_again_in_a_new_process(
    kind: str, runs: Run, data: Path, tmp_path: Path
) -> None:
    folder = runs(kind)
    picture = data.parent / "images" / "val" / "0.png"
    said = program(f"""
from ultralytics import YOLO
from selkern.adapt.unit import SelectiveConv
count = lambda network: sum(isinstance(m, SelectiveConv) for m in network.modules())
model = YOLO({str(folder / "weights" / "best.pt")!r})
before, keys = count(model.model), list(model.model.state_dict())
validated = model.val(data={str(data)!r}, imgsz=64, plots=False, device="cpu", project={str(tmp_path)!r})
predicted = model.predict({str(picture)!r}, imgsz=64, device="cpu", save=False, conf=0.0001)
model = YOLO({str(folder / "weights" / "best.pt")!r})
model.train(**{options(data, tmp_path)!r})
again = YOLO({str(tmp_path / "run" / "weights" / "best.pt")!r}).model
import json
print()
print(json.dumps([before, count(again), keys == list(again.state_dict()), float(validated.box.map), len(predicted)]))
""")
    before, after, same_keys, accuracy, predicted = json.loads(said.splitlines()[-1])
    assert before == after
    assert (before > 0) == KINDS[kind][1]
    assert same_keys
    assert accuracy >= 0
    assert predicted == 1


@needed
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_exported_to_torchscript_it_gives_the_same(kind: str, runs: Run, bridge: Any) -> None:
    model = loaded(bridge, runs(kind))
    x = torch.rand(1, 3, 64, 64)
    want = boxes(copy.deepcopy(model.model).float().eval(), x)
    exported = model.export(format="torchscript", imgsz=64, device="cpu")
    got = torch.jit.load(exported)(x)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(got[0] if isinstance(got, tuple) else got, want, rtol=1e-4, atol=1e-3)


@needed
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_exported_to_onnx_it_gives_the_same(kind: str, runs: Run, bridge: Any) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: make clients")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: make clients")
    model = loaded(bridge, runs(kind))
    exported = model.export(format="onnx", imgsz=64, device="cpu", dynamic=True, simplify=False)
    session = runtime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        x = torch.rand(count, 3, 64, 64)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        want = boxes(copy.deepcopy(model.model).float().eval(), x)
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-3)


@needed
@pytest.mark.exhaustive
def test_the_weights_of_a_checkpoint_all_transfer(bridge: Any, data: Path, tmp_path: Path) -> None:
    """A plain checkpoint, then selective kernels: the first step begins with the network that was trained."""
    plain = bridge.Yolo("yolov8n.yaml")
    plain.train(**options(data, tmp_path))
    before = bridge.Yolo(tmp_path / "run" / "weights" / "best.pt")
    kept: list[Any] = []
    model = bridge.Yolo(tmp_path / "run" / "weights" / "best.pt")
    model.add_callback("on_pretrain_routine_end", lambda trainer: kept.append(copy.deepcopy(trainer.model).eval()))
    model.train(**options(data, tmp_path, name="changed"), trainer=bridge.ours.trainer("last 2 stages"))
    x = torch.rand(2, 3, 64, 64)
    assert units(kept[0])
    assert torch.equal(boxes(kept[0], x), boxes(before.model.float().eval(), x))
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed: make clients")
    (tmp_path / "kind").write_bytes(
        cloudpickle.dumps(type(model.trainer))
    )  # as it goes to the processes of several GPUs
    said = program(f"import pickle; print(pickle.load(open({str(tmp_path / 'kind')!r}, 'rb')).selection['where'])")
    assert said.splitlines()[-1] == "last 2 stages"


@needed
@pytest.mark.exhaustive
def test_the_command_trains_with_selective_kernels(bridge: Any, data: Path, tmp_path: Path) -> None:
    words = [f"{key}={value}" for key, value in options(data, tmp_path).items()]
    start = "from selkern.cli import main\nimport sys\n"
    train = ["yolo", "train", "model=yolov8n.yaml", "selectify=last 2 stages", *words]
    program(f"{start}sys.exit(main({train!r}))")
    best = tmp_path / "run" / "weights" / "best.pt"
    assert units(bridge.Yolo(best).model)
    val = [
        "yolo",
        "val",
        f"model={best}",
        f"data={data}",
        "imgsz=64",
        "plots=False",
        "device=cpu",
        f"project={tmp_path}",
    ]
    program(f"{start}sys.exit(main({val!r}))")
    for wrong in ("epohcs=1", f"data={tmp_path / 'none.yaml'}"):
        said = program(f"{start}print(main(['yolo', 'train', 'model=yolov8n.yaml', {wrong!r}]))")
        assert said.splitlines()[-1] == "2"


@needed
@pytest.mark.exhaustive
def test_a_run_without_selective_kernels_is_not_resumed_with_them(bridge: Any, data: Path, tmp_path: Path) -> None:
    model = bridge.Yolo("yolov8n.yaml")
    model.add_callback("on_fit_epoch_end", stop)
    with pytest.raises(Stopped):
        model.train(**options(data, tmp_path, epochs=2))
    again = bridge.Yolo(tmp_path / "run" / "weights" / "last.pt")
    with pytest.raises(UsageError, match="the run to resume has no selective kernels"):
        again.train(resume=True, trainer=bridge.ours.SelectiveTrainer)
