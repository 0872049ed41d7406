"""Networks to a folder or the Hub and back: bit for bit, with their card, and every mistake in one line.

huggingface_hub is the real one. It runs in processes of their own, since it reads its environment when it is imported,
and talks to the Hub of `hub_server.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server import Hub, serve
from PIL import Image
from safetensors.torch import load as load_torch
from safetensors.torch import load_file, save
from tiny import make_folder
from torch import Tensor

from selkern import cli
from selkern.convert.timm import to_timm
from selkern.data.preprocess import Preprocess, Resize
from selkern.errors import CheckpointError, SelkernError, UsageError
from selkern.models.backbone import Backbone
from selkern.models.registry import architecture, create_model, from_pretrained
from selkern.models.weights import Card, bundled, read_card
from selkern.train.network import new_network, open_network
from selkern.train.run_folder import RunFolder

SOURCE = Path(__file__).parents[2] / "src"
BUNDLED = bundled()["sknet_mini.digits"]
TIMM = "timm/skresnet18.ra_in1k"
# What timm writes beside its weights, as far as it is read here.
CONFIG = {
    "architecture": "skresnet18",
    "num_classes": 5,
    "pretrained_cfg": {
        "input_size": [3, 192, 192],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.1, 0.2, 0.3],
    },
}


def same_weights(model: Backbone, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def refused(kind: type[SelkernError], code: int, call: Callable[[], object]) -> str:
    with pytest.raises(kind) as error:
        call()
    assert error.value.exit_code == code
    assert "\n" not in str(error.value)
    return str(error.value)


def front_matter(folder: Path) -> dict[str, Any]:
    empty, yaml_text, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert empty == ""
    values: dict[str, Any] = yaml.safe_load(yaml_text)
    return values


# ---- a folder


def test_a_folder_gives_the_same_weights_and_card(tmp_path: Path) -> None:
    model = create_model("sknet_mini", weights="digits")
    model.save_pretrained(tmp_path / "made" / "net")
    assert sorted(path.name for path in (tmp_path / "made" / "net").iterdir()) == ["README.md", "model.safetensors"]
    for source in (tmp_path / "made" / "net", str(tmp_path / "made" / "net" / "model.safetensors")):
        again = from_pretrained(source)
        assert same_weights(again, model.state_dict())
        assert again.card == model.card == read_card(BUNDLED)


@pytest.mark.parametrize(
    ("name", "options", "task"),
    [
        ("sk_shufflenet_v2_x05", {"num_classes": 3, "in_chans": 1}, "image-classification"),
        ("se_shufflenet_v2_x05", {"num_classes": 2}, "image-classification"),
        ("sknet_mini_sum", {"num_classes": 0}, "image-feature-extraction"),
    ],
)
def test_a_network_by_name_alone(tmp_path: Path, name: str, options: dict[str, Any], task: str) -> None:
    model = create_model(name, **options)
    assert model.card == Card(
        model=name,
        classes=tuple("012"[: model.num_classes]),
        in_chans=model.in_chans,
        source={"started from": "random weights"},
    )
    model.save_pretrained(tmp_path / "net")
    assert same_weights(from_pretrained(tmp_path / "net"), model.state_dict())
    reported = front_matter(tmp_path / "net")
    assert reported["pipeline_tag"] == task
    assert ("selective-kernel" in reported["tags"]) == (name == "sk_shufflenet_v2_x05")
    assert "model-index" not in reported
    text = (tmp_path / "net" / "README.md").read_text()
    assert "Nothing is recorded." in text
    assert "How they were prepared is not recorded." in text


def test_the_readme_tells_what_was_measured(tmp_path: Path) -> None:
    model = create_model("sknet_mini", weights="digits")
    model.save_pretrained(tmp_path / "net", license="apache-2.0")
    reported = front_matter(tmp_path / "net")
    assert reported["library_name"] == "selkern"
    assert reported["license"] == "apache-2.0"
    assert reported["tags"] == ["image-classification", "selective-kernel"]
    results = reported["model-index"][0]["results"]
    assert {result["dataset"]["name"] for result in results} == {"digits"}
    measured = {figure["name"]: figure["value"] for result in results for figure in result["metrics"]}
    metrics = read_card(BUNDLED).metrics
    names = ("val_top1", "val_top5", "val_loss", "test_top1", "test_loss")
    assert measured == {name: metrics[name] for name in names}
    text = (tmp_path / "net" / "README.md").read_text()
    for part in ("180,226", "22,396,800 at 48 x 48 px", "| test_images | 3,000 |", "| test_top1_low | 0.978473 |"):
        assert part in text
    for part in ("arXiv 1903.06586", '"command": "selkern train"', "6 selective-kernel units", '["0", "1", "2", "3",'):
        assert part in text


def test_the_example_in_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    create_model("sknet_mini", weights="digits").save_pretrained("net")
    Image.new("RGB", (60, 50), (90, 90, 90)).save("picture.png")
    python, shell = (Path("net/README.md").read_text().split("```")[i] for i in (1, 3))
    exec(compile(python.removeprefix("python\n"), "README.md", "exec"), {})
    name, probability = capsys.readouterr().out.split()
    assert name in read_card(BUNDLED).classes
    assert 0.1 < float(probability) <= 1
    assert cli.main(shell.split()[1:]) == 0
    assert capsys.readouterr().out.startswith(f"picture.png\t{name} {float(probability):.3f}\t")


def test_a_saved_file_is_weights_for_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_model("sknet_mini", weights="digits").save_pretrained(tmp_path / "net")
    for name in "01":
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for part in ("test", "train"):
            Image.new("RGB", (48, 48)).save(tmp_path / "data" / part / name / "a.png")
            Image.new("RGB", (48, 48)).save(tmp_path / "data" / part / name / "b.png")
    file = str(tmp_path / "net" / "model.safetensors")
    assert cli.main(["evaluate", file, "--data", str(tmp_path / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4


def test_names_that_are_hard_to_write_down(tmp_path: Path) -> None:
    classes = ("---\na: b", "```", "| x |", "ä\u2028", '"quoted"')
    model = create_model("sknet_mini", num_classes=5)
    assert model.card is not None
    source = {"data": "/home/me/my 'best': #photos", "command": "selkern train --name '---'"}
    model.card = replace(model.card, classes=classes, metrics={"test_top1": 0.5}, source=source)
    model.save_pretrained(tmp_path / "net: 1")
    reported = front_matter(tmp_path / "net: 1")["model-index"][0]
    assert reported["name"] == "net: 1"
    assert reported["results"][0]["dataset"]["name"] == "my 'best': #photos"
    assert read_card(tmp_path / "net: 1" / "model.safetensors") == model.card


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_nothing_of_the_users_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    model = create_model("sknet_mini")
    assert name in refused(UsageError, 2, lambda: model.save_pretrained(tmp_path))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_a_network_that_cannot_be_saved(tmp_path: Path) -> None:
    maps = create_model("sknet_mini", weights="digits", features_only=True)
    assert "features_only" in refused(UsageError, 2, lambda: maps.save_pretrained(tmp_path / "net"))
    by_hand = architecture("sknet_mini").build(3, 3, False)
    assert by_hand.card is None
    assert "no card" in refused(UsageError, 2, lambda: by_hand.save_pretrained(tmp_path / "net"))
    by_hand.card = Card(model="sknet_mini", classes=("a", "b"))
    assert "2 classes and 3 channels" in refused(UsageError, 2, lambda: by_hand.save_pretrained(tmp_path / "net"))
    (tmp_path / "file").write_text("")
    model = create_model("sknet_mini")
    assert "cannot be made" in refused(UsageError, 2, lambda: model.save_pretrained(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_figures_go_with_the_weights_they_were_measured_with(tmp_path: Path) -> None:
    model = create_model("sknet_mini", weights="digits")
    card = read_card(BUNDLED)
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        model(torch.randn(2, 3, 48, 48))
    model.save_pretrained(tmp_path / "same")
    assert read_card(tmp_path / "same" / "model.safetensors") == card
    with torch.no_grad():
        model.fc.get_parameter("bias")[3] += 1e-6
    model.save_pretrained(tmp_path / "trained")
    reported = read_card(tmp_path / "trained" / "model.safetensors")
    assert reported == replace(card, metrics={}, source={"started from": card.source})
    assert "model-index" not in front_matter(tmp_path / "trained")
    model.card = replace(card, metrics={"test_top1": 0.5}, source={"data": "digits"})
    model.save_pretrained(tmp_path / "measured")
    assert read_card(tmp_path / "measured" / "model.safetensors") == model.card


def test_a_head_made_anew_has_no_figures() -> None:
    card = read_card(BUNDLED)
    model = create_model("sknet_mini", weights="digits", num_classes=3)
    assert model.card == replace(card, classes=("0", "1", "2"), metrics={}, source={"started from": card.source})


def test_sources_that_are_no_network(tmp_path: Path) -> None:
    assert "no such weights file" in refused(CheckpointError, 4, lambda: from_pretrained(tmp_path))
    assert "no such weights file" in refused(CheckpointError, 4, lambda: from_pretrained("some/weights.safetensors"))
    assert "no such weights file" in refused(CheckpointError, 4, lambda: from_pretrained(Path("some/folder")))
    assert "only the Hub" in refused(UsageError, 2, lambda: from_pretrained(tmp_path, revision="main"))


@pytest.mark.exhaustive
def test_without_huggingface_hub_and_pillow_folders_work_and_the_hub_is_one_line(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["huggingface_hub"] = sys.modules["PIL"] = None
import selkern, selkern.convert.foreign
model = selkern.create_model("sknet_mini", weights="digits")
model.save_pretrained("net")
assert selkern.from_pretrained("net").card == model.card
for call in (lambda: selkern.from_pretrained("user/name"), lambda: model.push_to_hub("user/name"),
             lambda: selkern.create_model(weights="hf-hub:user/name")):
    try:
        call()
    except selkern.errors.UsageError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    line = "huggingface_hub is not installed | user/name | pip install 'selkern[hub]'"
    assert done.stdout.splitlines() == [line] * 3


# ---- timm's files, by path


@cache
def tensors(name: str) -> tuple[bytes, bytes]:
    """Random weights of one of timm's networks: the file with timm's names, and the file with ours."""
    state = create_model(name, num_classes=5).state_dict()
    timm = {key: tensor.contiguous() for key, tensor in to_timm(state, name).items()}
    return save(timm, metadata={"format": "pt"}), save(state)


def timm_files(config: object = CONFIG, name: str = "skresnet18") -> dict[str, bytes]:
    """A repository of timm's, and in it the same with our names, as a file that nobody asks for."""
    theirs, ours = tensors(name)
    files = {"model.safetensors": theirs, "ours": ours}
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    return files if config is None else {**files, "config.json": text}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_file_of_timms_brought_by_hand(tmp_path: Path) -> None:
    folder = write(tmp_path / "with", timm_files())
    for model in (from_pretrained(folder), create_model("skresnet18", weights=folder / "model.safetensors")):
        assert same_weights(model, load_file(folder / "ours"))
        assert model.card is not None
        assert model.card.preprocess == {"size": 192, "crop": 0.9, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    (folder / "config.json").unlink()
    assert "not a selkern weights file" in refused(CheckpointError, 4, lambda: from_pretrained(folder))
    plain = from_pretrained(folder, name="skresnet18")
    assert plain.card is not None
    assert plain.card.preprocess["mean"] == [0.485, 0.456, 0.406]
    assert plain.card.source == {"converted from": "model.safetensors"}
    assert "tensor" in refused(CheckpointError, 4, lambda: from_pretrained(folder, name="skresnet34"))
    assert "3 channels, not 1" in refused(
        CheckpointError, 4, lambda: from_pretrained(folder, name="skresnet18", in_chans=1)
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "config.json cannot be read"),
        ({**CONFIG, "pretrained_cfg": {"input_size": [3, 192, 160]}}, "not square"),
        ({**CONFIG, "pretrained_cfg": {"mean": "grey"}}, "config.json cannot be read"),
        ({**CONFIG, "pretrained_cfg": {"crop_mode": "spiral"}}, "config.json cannot be read"),
        ({**CONFIG, "architecture": "skresnet34"}, "is missing"),
    ],
)
def test_a_config_that_cannot_be_meant(tmp_path: Path, config: object, message: str) -> None:
    folder = write(tmp_path / "net", timm_files(config))
    assert message in refused(
        CheckpointError, 4, lambda: create_model("skresnet18", weights=folder / "model.safetensors")
    )


def test_another_way_of_resizing_is_noted(tmp_path: Path) -> None:
    config = {**CONFIG, "pretrained_cfg": {"interpolation": "bilinear"}}
    card = from_pretrained(write(tmp_path / "net", timm_files(config))).card
    assert card is not None
    assert card.source["resized by timm"] == "bilinear; here always bicubic"


@pytest.mark.share(2)
@pytest.mark.parametrize(("theirs", "ours"), [("center", None), ("squash", "squash"), ("border", "pad"), (None, None)])
def test_timms_way_to_make_a_square_is_kept(tmp_path: Path, theirs: str | None, ours: str | None) -> None:
    config = {**CONFIG, "pretrained_cfg": {"crop_mode": theirs}}
    card = from_pretrained(write(tmp_path / "net", timm_files(config))).card
    assert card is not None
    assert card.preprocess.get("resize") == ours


@pytest.mark.parametrize(
    ("resize", "crop", "says"),
    [
        ("crop", 0.875, "the short side resized to 55 px (bicubic), the centre of 48 x 48 px cut out, less"),
        ("squash", 1.0, "both sides resized to 48 px (bicubic), whatever their proportions, less"),
        ("pad", 1.0, "the long side resized to 48 px (bicubic) and filled to a square with the mean colour, less"),
        ("pad", 0.875, "filled to a square with the mean colour, the centre of 48 x 48 px cut out, less"),
    ],
)
def test_the_model_card_says_how_images_are_made_square(tmp_path: Path, resize: Resize, crop: float, says: str) -> None:
    model = create_model("sknet_mini", num_classes=2)
    assert model.card is not None
    preprocess = Preprocess(size=48, crop=crop, resize=resize)
    model.card = replace(model.card, preprocess=preprocess.to_dict())
    model.save_pretrained(tmp_path / "net")
    assert says in (tmp_path / "net" / "README.md").read_text()


# ---- the Hub


@dataclass
class Client:
    """A process with huggingface_hub in it, and the Hub that it knows."""

    hub: Hub
    pool: ProcessPoolExecutor

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self.pool.submit(function, *arguments, **options).result(timeout=120)


def _enter(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)


def _client(hub: Hub, home: Path, **environment: str) -> Client:
    reported = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    pool = ProcessPoolExecutor(1, get_context("spawn"), _enter, (reported,))
    return Client(hub, pool)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Client]:
    with serve() as hub:
        made = _client(hub, home)
        with made.pool:
            yield made


@pytest.fixture(scope="module")
def offline(home: Path, client: Client) -> Iterator[Client]:
    made = _client(client.hub, home, HF_HUB_OFFLINE="1")
    with made.pool:
        yield made


def digest(state: dict[str, Tensor]) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()


# These run in the client's process.


def load(source: str, **options: Any) -> tuple[str, Card | None, str]:
    """Digest and card of a network from the Hub, and what was logged."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("selkern").addHandler(handler)
    try:
        model = from_pretrained(source, **options)
    finally:
        logging.getLogger("selkern").removeHandler(handler)
    return digest(model.state_dict()), model.card, said.getvalue()


def push(repository: str, seed: int | None = None, **options: Any) -> str:
    """Push the bundled weights; with a seed, a network of random weights instead."""
    torch.manual_seed(seed or 0)
    model = create_model("sknet_mini", weights="digits" if seed is None else None)
    return model.push_to_hub(repository, **options)


def run(*words: str) -> tuple[int, str, str]:
    """A command: its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return cli.main(words), out.getvalue(), err.getvalue()


def test_pushed_weights_come_back(client: Client) -> None:
    address = client.call(push, "me/digits", token="owner", private=False, commit_message="first try")
    repository = client.hub.repositories["me/digits"]
    number, message, files = repository.commits[-1]
    assert address == f"{client.hub.address}/me/digits/commit/{number}"
    assert (message, repository.private) == ("first try", False)
    assert sorted(files) == ["README.md", "model.safetensors"]
    text = files["README.md"].decode()
    assert 'selkern.from_pretrained("me/digits")' in text
    assert "selkern predict hf-hub:me/digits picture.png" in text
    assert client.call(load, "me/digits") == (digest(load_file(BUNDLED)), read_card(BUNDLED), "")


def test_a_second_push_is_a_second_commit(client: Client) -> None:
    client.call(push, "me/twice", token="owner", private=True)
    client.call(push, "me/twice", seed=1, token="owner")
    repository = client.hub.repositories["me/twice"]
    assert repository.private
    assert [message for _, message, _ in repository.commits] == ["Weights of sknet_mini"] * 2
    repository.private = False
    first, second = (number for number, _, _ in repository.commits)
    bundled_weights = digest(load_file(BUNDLED))
    assert client.call(load, "me/twice", revision=first)[0] == bundled_weights
    assert client.call(load, f"hf-hub:me/twice@{first}")[0] == bundled_weights
    latest, card, _ = client.call(load, "hf-hub:me/twice")
    assert latest == client.call(load, "me/twice", revision=second)[0] != bundled_weights
    assert card.source == {"started from": "random weights"}


@pytest.mark.parametrize("name", ["skresnet18", "skresnext50_32x4d"])
def test_weights_of_timm(client: Client, name: str) -> None:
    files = timm_files({"architecture": name, "pretrained_cfg": {"crop_pct": 0.875}}, name)
    number = client.hub.put(f"timm/{name}.ra_in1k", files)
    weights, card, _ = client.call(load, f"timm/{name}.ra_in1k")
    assert weights == digest(load_torch(files["ours"]))
    assert (card.model, card.classes, card.in_chans) == (name, ("0", "1", "2", "3", "4"), 3)
    usual = {"size": 224, "crop": 0.875, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert card.preprocess == usual
    assert card.source == {"converted from": f"hf-hub:timm/{name}.ra_in1k@{number}"}


def test_a_new_head_on_weights_of_timm(client: Client) -> None:
    number = client.hub.put("timm/head", timm_files())
    _, card, said = client.call(load, "timm/head", num_classes=2)
    assert card.classes == ("0", "1")
    assert card.preprocess["size"] == 192
    assert said == f"head made anew for 2 classes (hf-hub:timm/head@{number} has 5)\n"
    assert "3 channels, not 1" in refused(CheckpointError, 4, lambda: client.call(load, "timm/head", in_chans=1))
    assert "weights are of skresnet18, not sknet50" in refused(
        CheckpointError, 4, lambda: client.call(load, "timm/head", name="sknet50")
    )


def test_weights_of_timm_without_a_config_need_a_name(client: Client) -> None:
    files = timm_files(None)
    client.hub.put("timm/bare", files)
    assert "the model's name" in refused(CheckpointError, 4, lambda: client.call(load, "timm/bare"))
    assert client.call(load, "timm/bare", name="skresnet18")[0] == digest(load_torch(files["ours"]))


def test_the_commands_take_repositories(client: Client, tmp_path: Path) -> None:
    client.hub.put("me/cli", {"model.safetensors": BUNDLED.read_bytes()})
    Image.new("RGB", (50, 50), (90, 90, 90)).save(tmp_path / "picture.png")
    here = run("predict", "sknet_mini.digits", str(tmp_path / "picture.png"))
    there = client.call(run, "predict", "hf-hub:me/cli", str(tmp_path / "picture.png"))
    assert there[:2] == here[:2]  # on stderr each names its weights
    assert here[0] == 0
    checked = client.call(run, "check", "hf-hub:me/cli", "--input", "3,48,48")
    local = run("check", str(BUNDLED), "--input", "3,48,48")
    assert checked[1].removeprefix("hf-hub:me/cli") == local[1].removeprefix(str(BUNDLED))
    assert (checked[0], checked[2]) == (local[0], "")

    files = timm_files()
    number = client.hub.put(TIMM, files)
    target = tmp_path / "out.safetensors"
    code, out, err = client.call(run, "convert", f"hf-hub:{TIMM}", str(target), "--model", "skresnet18")
    assert (code, out, err) == (0, f"{target}: skresnet18, 5 classes\n", "")
    assert digest(load_file(target)) == digest(load_torch(files["ours"]))
    card = read_card(target)
    assert card.source == {"converted from": f"hf-hub:{TIMM}@{number}"}
    assert card.preprocess["size"] == 192
    words = ("convert", "hf-hub:me/cli", str(tmp_path / "ours.safetensors"), "--model", "sknet_mini")
    code, _, err = client.call(run, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "needs no converting" in err


@pytest.mark.exhaustive
def test_a_third_party_network_starts_from_a_repository(client: Client, tmp_path: Path) -> None:
    code = """
from torch import nn

def net(classes=2):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, classes))
"""
    (tmp_path / "mine.py").write_text(code)
    word, data = f"{tmp_path / 'mine.py'}:net", make_folder(tmp_path / "data")
    first, _, _ = new_network(word, 2, 16)
    client.hub.put("me/plain", {"model.safetensors": save(first.state_dict())})
    words = ["train", "--data", str(data), "--model", word, "--weights", "hf-hub:me/plain", "--selectify", "0"]
    words += ["--image-size", "16", "--epochs", "1", "--lr", "1e-9", "--no-report", "--threads", "1"]
    exit_code, _, err = client.call(run, *words, "--output", str(tmp_path), "--name", "run")
    assert exit_code == 0, err
    model, _ = open_network(RunFolder(tmp_path / "run").best, word)
    torch.testing.assert_close(model.get_parameter("0.conv.weight"), first.get_parameter("0.weight"))


GARBAGE = b"this is not a safetensors file, whatever its name says"


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("nobody/nothing", 4, "no such repository, or a private one | nobody/nothing | check the name, or log in"),
        ("me/private", 4, "no such repository, or a private one | me/private | "),
        ("me/gated", 4, "access is not allowed | me/gated | ask for it on the Hub"),
        ("me/broken@v9", 4, "no such revision | me/broken | "),
        ("me/empty", 4, "the repository has no model.safetensors | me/empty | "),
        ("me/broken", 4, "cannot be read ("),
        ("hf-hub:", 2, "not the name of a repository | (empty name) | give user/name"),
        ("hf-hub:no-user", 2, "not the name of a repository | no-user | give user/name"),
        ("hf-hub:me/a--b", 2, "not the name of a repository ("),
    ],
)
def test_what_the_hub_does_not_give(client: Client, source: str, code: int, message: str) -> None:
    client.hub.put("me/private", {"model.safetensors": BUNDLED.read_bytes()}, private=True)
    client.hub.put("me/gated", {"model.safetensors": BUNDLED.read_bytes()}, gated=True)
    client.hub.put("me/empty", {"README.md": b"nothing here"})
    client.hub.put("me/broken", {"model.safetensors": GARBAGE})
    kind = CheckpointError if code == 4 else UsageError
    assert refused(kind, code, lambda: client.call(load, source)).startswith(message)


def test_a_damaged_file_can_be_fetched_again(client: Client) -> None:
    client.hub.put("me/mended", {"model.safetensors": GARBAGE})
    reported = refused(CheckpointError, 4, lambda: client.call(load, "me/mended"))
    assert reported.endswith("| delete it and fetch it again")
    Path(reported.split(" | ")[1]).unlink()
    client.hub.put("me/mended", {"model.safetensors": BUNDLED.read_bytes()})
    assert client.call(load, "me/mended")[1] == read_card(BUNDLED)


@pytest.mark.parametrize(
    ("repository", "token", "message"),
    [
        ("me/new", None, "not logged in, or the token is not valid | me/new | log in with `hf auth login`"),
        ("me/new", "reader", "not allowed (You have read access only) | me/new | "),
        ("new", "owner", "not the name of a repository | new | give user/name"),
    ],
)
def test_what_may_not_be_pushed(client: Client, repository: str, token: str | None, message: str) -> None:
    assert refused(UsageError, 2, lambda: client.call(push, repository, token=token)).startswith(message)
    assert repository not in client.hub.repositories


def test_nothing_is_asked_of_the_hub_before_the_network_is_fit_to_be_pushed(client: Client) -> None:
    asked = list(client.hub.asked)
    refused(UsageError, 2, lambda: client.call(push_maps, "me/maps"))
    assert client.hub.asked == asked


def push_maps(repository: str) -> None:
    create_model("sknet_mini", features_only=True).push_to_hub(repository, token="owner")


def test_only_what_is_asked_for_is_fetched(client: Client, tmp_path: Path) -> None:
    asked = list(client.hub.asked)
    create_model("sknet_mini", weights="digits").save_pretrained(tmp_path / "me" / "local")
    client.call(load, str(tmp_path / "me" / "local"))
    client.call(load, "sknet_mini.digits")
    refused(CheckpointError, 4, lambda: client.call(load, "me/local.safetensors"))
    assert client.hub.asked == asked
    others = {"config.json": b"{}", "pytorch_model.bin": b""}
    client.hub.put("me/local", {"model.safetensors": BUNDLED.read_bytes(), **others})
    client.call(load, "me/local")
    files = {line.rpartition("/")[2] for line in client.hub.asked[len(asked) :]}
    assert files == {"model.safetensors"}


@pytest.mark.exhaustive
def test_offline_the_cache_is_enough(client: Client, offline: Client) -> None:
    client.hub.put("me/cached", {"model.safetensors": BUNDLED.read_bytes()})
    client.hub.put("timm/cached", timm_files())
    for name in ("me/cached", "timm/cached"):
        fetched = client.call(load, name)
        asked = list(client.hub.asked)
        assert offline.call(load, name) == fetched
        assert client.hub.asked == asked


@pytest.mark.exhaustive
def test_offline_without_the_file(offline: Client) -> None:
    bring = "bring its model.safetensors and give the path: weights='model.safetensors' or `selkern convert`"
    reported = refused(CheckpointError, 4, lambda: offline.call(load, "timm/far.away"))
    assert reported == f"cannot reach the Hub | timm/far.away | {bring}"
    said = offline.call(run, "evaluate", "hf-hub:timm/far.away", "--data", "digits")
    assert said[:2] == (4, "")
    assert said[2].splitlines()[-1] == f"error: {reported}"
    pushed = refused(CheckpointError, 4, lambda: offline.call(push, "me/far", token="owner"))
    assert pushed.startswith("cannot reach the Hub (")
    assert "`save_pretrained` writes the same files" in pushed


@pytest.mark.exhaustive
def test_the_model_card_says_what_is_white_in_deep_pixels(tmp_path: Path) -> None:
    model = create_model("sknet_mini", num_classes=2)
    assert model.card is not None
    for name, preprocess in (("plain", Preprocess(size=48)), ("deep", Preprocess(size=48, levels=(0.0, 4095.0)))):
        model.card = replace(model.card, preprocess=preprocess.to_dict())
        model.save_pretrained(tmp_path / name)
    assert "as with `--white-level 4095`." in (tmp_path / "deep" / "README.md").read_text()
    assert "white-level" not in (tmp_path / "plain" / "README.md").read_text()
