"""What training keeps for the backward pass. (No torch here: the command line shows these words.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar, get_args

if TYPE_CHECKING:
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)

# All that autograd keeps; of a selective kernel the convolutions' outputs, from which norms, activations and the
# selected map are computed again; and so in whole units of our networks.
Memory = Literal["plain", "default", "lean"]


class HasMemory:
    """Base of the layers, units and networks whose `memory` `set_memory` sets.

    A module of another library may have an attribute of that name too, such as the memory of a transformer.
    """

    memory: Memory


def set_memory(model: Model, memory: Memory) -> Model:
    """Choose what training keeps for the backward pass, in every selective kernel, unit and network within a model.

    Args:
        model: any module; those within it that are not selkern's stay as they are.
        memory: "default", "lean" or "plain"; see `SelectiveKernel`. "lean" also computes again the maps between
            the convolutions of our networks' units, and the stem's.

    Returns:
        The model.

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
        if isinstance(module, HasMemory):
            module.memory = memory
    return model


def check_memory(memory: str) -> None:
    """Raise ValueError unless `memory` is one of the words of `Memory`."""
    if memory not in get_args(Memory):
        raise ValueError(f"memory must be one of {', '.join(get_args(Memory))}, got {memory!r}")
