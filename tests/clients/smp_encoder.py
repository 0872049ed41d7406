"""A pytest plugin for segmentation_models_pytorch's own tests: `smp.Unet` has an encoder of ours where none is named.

In a process of its own, with the environment variable `SELKERN_ENCODER`.
"""

from __future__ import annotations

import os
from typing import Any

from shim import timm_or_skip

timm_or_skip()
import segmentation_models_pytorch as smp  # noqa: E402

import selkern.timm  # noqa: E402, F401 - registers our networks


class Unet(smp.Unet):  # type: ignore[misc]
    """The network that a test would have got, without weights from elsewhere."""

    def __init__(self, encoder_name: str = os.environ["SELKERN_ENCODER"], **options: Any) -> None:
        super().__init__(encoder_name, **{"encoder_weights": None, **options})


smp.Unet = Unet
