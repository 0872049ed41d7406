"""Trainers: a few steps in each, after which the loss has fallen, and what else the tool is for.

One of them: `.venv-clients/bin/python -m pytest -m exhaustive tests/clients/test_trainers.py -k fastai`.
"""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from clients import client
from subjects import (
    NETWORKS,
    Memory,
    Subject,
    assert_close,
    assert_same_gradients,
    gradients,
    images,
    loss_of,
    plain_copy,
    subjects,
    train,
)
from tiny import draw_boxes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import selkern

SMALL = ("SelectiveKernel", "SKAttention", "sknet_mini")
MODES: tuple[Memory, ...] = ("default", "lean")


def loader(count: int = 13, batch: int = 4) -> DataLoader[Any]:
    """Batches, the last of a single image."""
    return DataLoader(TensorDataset(*images(count)), batch_size=batch)


def loss_now(model: nn.Module) -> float:
    """On the images of `loader`, in training mode, without a step."""
    with torch.no_grad():
        return loss_of(copy.deepcopy(model).train(), *images(12)).item()


@client("Lightning", "lightning", "Trainer.fit over batches whose last is of one image, a checkpoint, restored")
@subjects(SMALL, MODES)
def test_lightning(subject: Subject, tmp_path: Path) -> None:
    import lightning

    class Task(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = subject()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return loss_of(self.model, *batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.02, momentum=0.9)

    task = Task()
    before = loss_now(task.model)
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=True
    )
    trainer.fit(task, loader())
    assert loss_now(task.model) < before
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    restored = Task.load_from_checkpoint(tmp_path / "task.ckpt").eval()
    x = images(2)[0]
    assert_close(restored.model(x), task.eval().model(x))


@client("Accelerate", "accelerate", "bf16 autocast, two batches a step, clipped gradients, state saved and loaded")
@subjects(SMALL, MODES)
def test_accelerate(subject: Subject, tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # one for the process: transformers' Trainer makes it as well
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    model = subject()
    before = loss_now(model)
    model, optimizer, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.02, 0.9), loader())
    for _ in range(4):
        for x, y in data:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, x, y))
                accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert loss_now(plain) < before
    accelerator.save_state(str(tmp_path))
    x = images(2)[0]
    want = plain.eval()(x)
    train(plain, steps=1)
    accelerator.load_state(str(tmp_path))
    assert_close(plain.eval()(x), want, 0.02)


@client("transformers", "transformers", "Trainer over a small wrapper: steps, a checkpoint, evaluation")
@subjects(SMALL, MODES)
def test_transformers_trainer(subject: Subject, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = subject()

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(pixel_values)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    data = [{"pixel_values": x, "labels": y} for x, y in zip(*images(13), strict=True)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=8, per_device_train_batch_size=4, learning_rate=2e-3, report_to="none", use_cpu=True
    )
    wrapped = Wrapped()
    before = loss_now(wrapped.model)
    trainer = Trainer(wrapped, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert loss_now(wrapped.model) < before
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").exists()


@client("skorch", "skorch", "NeuralNetClassifier in scikit-learn's cross_val_score, cloned and pickled")
@subjects(SMALL, ["default"])
def test_skorch(subject: Subject) -> None:
    import pickle

    from sklearn.model_selection import cross_val_score
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        subject(), criterion=nn.CrossEntropyLoss, lr=0.05, max_epochs=4, batch_size=5, verbose=0, train_split=None
    )
    x, y = (tensor.numpy() for tensor in images(24))
    assert cross_val_score(net, x, y, cv=2).mean() > 0.3
    net.fit(x, y)
    again = pickle.loads(pickle.dumps(net))
    assert (again.predict_proba(x) == net.predict_proba(x)).all()


@client("fastai", "fastai", "Learner with fit_one_cycle; a DynamicUnet over a network's body")
@subjects(NETWORKS, ["default"])
def test_fastai(subject: Subject) -> None:
    import fastai.vision.all as fastai
    from fastai.vision.models.unet import DynamicUnet

    data = fastai.DataLoaders.from_dsets(
        *(TensorDataset(*images(12, seed=s)) for s in (0, 1)), bs=4, device=torch.device("cpu"), num_workers=0
    )
    model = subject()
    before = loss_now(model)
    learner = fastai.Learner(data, model, loss_func=fastai.CrossEntropyLossFlat(), lr=1e-3)
    learner.remove_cb(fastai.ProgressCallback)
    with learner.no_logging():
        learner.fit_one_cycle(4)
    assert loss_now(learner.model) < before
    body = fastai.create_body(model, pretrained=False, cut=lambda net: nn.Sequential(net.stem, net.pool, net.stages))
    unet = DynamicUnet(body, 2, (64, 64))
    out = unet(torch.randn(2, 3, 64, 64))
    assert out.shape == (2, 2, 64, 64)
    torch.autograd.backward(out.square().mean())
    assert all(p.grad is not None for p in body.parameters() if p.requires_grad)


@client("ignite", "pytorch-ignite", "create_supervised_trainer and evaluator with a metric")
@subjects(SMALL, MODES)
def test_ignite(subject: Subject) -> None:
    from ignite.engine import create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy

    model = subject()
    before = loss_now(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9)
    create_supervised_trainer(model, optimizer, F.cross_entropy).run(loader(), max_epochs=4)
    assert loss_now(model) < before
    evaluator = create_supervised_evaluator(model, metrics={"accuracy": Accuracy()})
    assert 0 <= evaluator.run(loader()).metrics["accuracy"] <= 1


@client("schedulefree", "schedulefree", "AdamWScheduleFree: trains, and the norms' statistics made anew for evaluation")
@subjects(SMALL, MODES)
def test_schedulefree(subject: Subject) -> None:
    from schedulefree import AdamWScheduleFree

    model = subject()
    x, y = images(12)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.01)
    optimizer.train()
    for _ in range(20):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, x, y))
        optimizer.step()
    optimizer.eval()
    with torch.no_grad():
        for _ in range(20):
            model(x)  # as its README says of BatchNorm
        assert loss_of(model.eval(), x, y) < 0.9


@client("peft", "peft", "LoRA on every dense convolution: only its matrices train; merged, the same logits")
@subjects(SMALL)
def test_lora_on_convolutions(subject: Subject) -> None:
    from peft import LoraConfig, get_peft_model

    model = subject()
    names = [
        n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and getattr(m, "groups", 1) == 1
    ]
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    x = images(2)[0]
    losses = train(tuned)
    assert losses[-1] < losses[0]
    assert all((p.grad is not None) == p.requires_grad for p in tuned.parameters())
    tuned.eval()
    want = tuned(x)
    assert_close(tuned.merge_and_unload()(x), want, 1e-3)


@client("peft", "peft", "")
@subjects(SMALL)
def test_gradients_under_lora_are_plain_s(subject: Subject) -> None:
    from peft import LoraConfig, get_peft_model

    model = subject()
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    for p in tuned.parameters():
        p.requires_grad_()
    x, y = images(4)
    assert_same_gradients(gradients(tuned, x, y), gradients(plain_copy(tuned), x, y), 1e-3)


@client(
    "Opacus",
    "opacus",
    "PrivacyEngine: per-sample gradients by hooks, clipped and noised steps",
    "no BatchNorm and nothing in place: SelectiveKernel(..., norm='group', activation=nn.ReLU)",
)
@pytest.mark.parametrize("memory", ["plain", "default", "lean"])
def test_opacus(memory: Any) -> None:
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    torch.manual_seed(1)
    unit = selkern.SelectiveKernel(8, 16, groups=4, norm="group", activation=nn.ReLU, memory=memory)
    model: Any = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), unit, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    )
    assert not ModuleValidator.validate(model, strict=False)
    single = [gradients(model, x[None], y[None]) for x, y in zip(*images(12), strict=True)]
    private, optimizer, data = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=DataLoader(TensorDataset(*images(12)), batch_size=12),
        noise_multiplier=0.01,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    x, y = images(12)
    torch.autograd.backward(loss_of(private, x, y))
    for name, p in private._module.named_parameters():
        assert_close(p.grad_sample, torch.stack([g[name] for g in single]), 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    for x, y in data:
        torch.autograd.backward(loss_of(private, x, y))
        optimizer.step()


@client("pytorch-metric-learning", "pytorch-metric-learning", "embeddings under a triplet loss with a miner")
@subjects(SMALL, MODES)
def test_metric_learning(subject: Subject) -> None:
    from pytorch_metric_learning import losses, miners

    model, (x, y) = subject(), images(12)
    loss_fn, miner = losses.TripletMarginLoss(), miners.BatchHardMiner()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    history = []
    for _ in range(15):
        optimizer.zero_grad()
        embedded = model(x)
        loss = loss_fn(embedded, y, miner(embedded, y))
        torch.autograd.backward(loss)
        optimizer.step()
        history.append(loss.item())
    assert min(history[-3:]) < history[0]


@client("TorchMetrics", "torchmetrics", "FID with a network of ours as its extractor of features")
@subjects(["sknet_mini", "sk_shufflenet_v2_x05"], ["default"])
def test_torchmetrics_fid(subject: Subject) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    extractor = selkern.create_model(subject.name, num_classes=0).eval()
    fid = FrechetInceptionDistance(feature=extractor, normalize=True, input_img_size=(3, 32, 32))
    fid.update(images(12)[0].sigmoid(), real=True)
    fid.update(images(12)[0].sigmoid(), real=False)
    same = abs(fid.compute().item())
    fid.update(images(12, seed=1)[0].sigmoid() * 0.5, real=False)
    assert same < 0.1 * fid.compute().item()


YOLO = """
nc: 3
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, SelectiveKernel, [32]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, SKAttention, []]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [[4, 5], 1, Detect, [nc]]
"""


@client(
    "Ultralytics YOLO",
    "ultralytics",
    "a detector with both layers in its YAML: an epoch on drawn images, validated, exported to ONNX",
    "import selkern.ultralytics: both are names for the YAML then",
)
def test_yolo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    from ultralytics import YOLO as Yolo
    from ultralytics.utils.nms import TorchNMS

    # A torchvision that was built for another torch lacks its operators (tests/shim.py): Ultralytics' own is the same.
    if not torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU"):
        monkeypatch.setattr("torchvision.ops.nms", TorchNMS.nms)
    importlib.import_module("selkern.ultralytics")
    draw_boxes(tmp_path)
    (tmp_path / "sk.yaml").write_text(YOLO)
    model = Yolo(tmp_path / "sk.yaml", task="detect")
    assert any(isinstance(m, selkern.SKAttention) for m in model.model.modules())
    model.train(
        data=str(tmp_path / "data.yaml"), epochs=1, imgsz=64, batch=4, workers=0, device="cpu", project=str(tmp_path),
        plots=False, amp=False, exist_ok=True, verbose=False,
    )  # fmt: skip
    exported = Path(model.export(format="onnx", imgsz=64, simplify=False, dynamic=True))
    import onnxruntime

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        x = torch.rand(count, 3, 64, 64)
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        want = model.model.float().eval()(x)
        assert_close(got, want[0] if isinstance(want, tuple) else want, 1e-3)
