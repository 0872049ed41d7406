"""What training keeps for the backward pass. (No torch here: the command line shows these words.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar, get_args

if TYPE_CHECKING:
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)

# All that autograd keeps; of a selective kernel the convolutions' outputs, from which norms, activations and the
# selected map are computed again; and so in whole units of our networks.
Memory = Literal["plain", "default", "lean"]


def set_memory(model: Model, memory: Memory) -> Model:
    """Say of every selective kernel and unit in a model what training keeps for the backward pass; gives the model.

    Args:
        model: a network or layer.
        memory: "default", "lean" or "plain"; see `SelectiveKernel`. "lean" also makes the maps between the
            convolutions of our networks' units again, and the stem's.

    Raises:
        ValueError: another word.

    Example:
        >>> import selkern
        >>> model = selkern.set_memory(selkern.create_model("sknet50"), "lean")
        >>> model.stages[0][0].mixer.memory
        'lean'
    """
    check_memory(memory)
    for module in model.modules():
        if hasattr(module, "memory"):
            setattr(module, "memory", memory)  # noqa: B010 - which the type of a module does not tell
    return model


def check_memory(memory: str) -> None:
    """Raise ValueError unless `memory` is one of the words of `Memory`."""
    if memory not in get_args(Memory):
        raise ValueError(f"memory must be one of {', '.join(get_args(Memory))}, got {memory!r}")
