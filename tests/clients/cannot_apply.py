"""Which of other projects' own tests cannot apply to our networks, and why. Nothing else is left out."""

from __future__ import annotations

TIMM = {
    "test_model_forward_torchscript": "torch.jit.script is deprecated; networks are traced, exported or compiled",
    "test_model_forward_fx_torchscript": "torch.jit.script again, of the graph that FX makes",
}
