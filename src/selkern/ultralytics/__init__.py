"""`import selkern.ultralytics` teaches Ultralytics YOLO our modules, and how to train a YOLO with selective kernels.

Model YAMLs may name `SelectiveKernel`, `SKAttention` and `SKFusion`; see `rows`. `trainer` makes the trainer that puts
selective kernels into a pretrained network without a further row, so that every weight keeps its place. What is trained
with either is an ordinary checkpoint: it validates, predicts, exports, resumes and trains again. Where it is loaded,
this module is imported by it, so selkern has to be installed there and nothing else.

Three functions of ultralytics are extended, and do for every other network what they did: `nn.tasks.parse_model`,
`nn.tasks.fuse_conv_and_bn` and `BaseModel.load`. Importing fails with a message where a version does not have them.

Ultralytics is an optional package of the user's, under AGPL-3.0; nothing else of selkern imports it.

Example:
    >>> import selkern.ultralytics, ultralytics  # doctest: +SKIP
    >>> trainer = selkern.ultralytics.trainer("last 2 stages")  # doctest: +SKIP
    >>> ultralytics.YOLO("yolov8n.pt").train(data="coco8.yaml", trainer=trainer)  # doctest: +SKIP
"""

from __future__ import annotations

import torch

from selkern.errors import PackageError

try:
    import ultralytics.nn.tasks  # noqa: F401 - what is extended
except ModuleNotFoundError as error:
    if error.name != "ultralytics":
        raise PackageError(
            f"ultralytics cannot be imported ({error})", __name__, f"pip install {error.name}"
        ) from error
    raise PackageError("ultralytics is not installed", __name__, "pip install ultralytics") from error
except (ImportError, RuntimeError, AttributeError, OSError) as error:  # what a torchvision that does not fit raises
    _fix = f"install the torchvision that was built for torch {torch.__version__}"
    raise PackageError(f"ultralytics cannot be imported ({error})", __name__, _fix) from error

from selkern.ultralytics.hooks import register
from selkern.ultralytics.training import SelectiveTrainer, trainer, training_with

register()

__all__ = ["SelectiveTrainer", "trainer", "training_with"]
