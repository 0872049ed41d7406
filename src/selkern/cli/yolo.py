"""`selkern yolo`: the command line of Ultralytics YOLO, which knows our modules and trains with selective kernels."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from selkern.errors import UsageError

HELP = """usage: selkern yolo ARGUMENTS

The command line of Ultralytics YOLO (pip install ultralytics; it is under AGPL-3.0), of the same arguments. Model files
may name SelectiveKernel, SKAttention and SKFusion, and train has one argument more:

  selectify=WHERE   put selective kernels into the network that is loaded, which computes what it did until training
                    moves it: auto, "last 2 stages", or names with commas between, as model.8.*,model.6.*

  selkern yolo train model=yolov8n.pt data=coco8.yaml selectify=auto
  selkern yolo val model=runs/detect/train/weights/best.pt data=coco8.yaml
  selkern yolo help                      what ultralytics says of its own arguments"""
_THEIRS = (SyntaxError, FileNotFoundError, ValueError, TypeError)  # what it raises for a mistake in its arguments


def main(argv: list[str]) -> int:
    """`selkern yolo`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    given = [word.partition("=")[2] for word in argv if word.startswith("selectify=")]
    rest = [word for word in argv if not word.startswith("selectify=")]
    if given and not {"train", "mode=train"} & {*rest}:
        raise UsageError("selectify is for train alone", f"selectify={given[-1]}", "what was trained with it keeps it")
    if given and not given[-1]:
        raise UsageError("selectify is empty", "selectify=", 'write selectify=auto, or "selectify=last 2 stages"')
    sys.argv[:] = ["yolo", *rest]  # ultralytics takes this list when it is imported, and asks it later
    import selkern.ultralytics as bridge

    from ultralytics import cfg  # isort: skip

    try:
        with bridge.training_with(given[-1]) if given else nullcontext():
            cfg.entrypoint()
    except (*_THEIRS, RuntimeError) as error:
        theirs = isinstance(error, _THEIRS) or str(error).startswith("Dataset ")
        if isinstance(error, UsageError) or not theirs:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UsageError(lines[0] if lines else type(error).__name__, "selkern yolo", "selkern yolo help") from error
    return 0
