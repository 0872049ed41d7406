"""The `selkern` program: finds the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from selkern import __version__
from selkern.errors import Interrupted, ResourceError, SelkernError, UsageError, ran_out_of_memory
from selkern.extras import missing

COMMANDS = {  # name and summary; each is `main` of the module of its name
    "train": "train a network, evaluate it, and report what its neurons chose (`--resume` continues)",
    "evaluate": "accuracy of a run or a weights file on its data or yours",
    "predict": "the likeliest classes of image files and folders",
    "analyze": "what the selective kernels chose, and the report",
    "explore": "a page in the browser: enlarge, turn and blur pictures, force units, and see what the network does",
    "convert": "weights of timm, Caffe or a torch state dict to a file that describes itself",
    "export": "a trained network for ONNX Runtime, OpenVINO or torch.export, int8 too, compared before it is kept",
    "check": "is this SK code, ours or anybody's, what the paper says? rule by rule",
    "selectify": "selective kernels in a network that you have: what would change, its cost, and that it stays exact",
    "models": "the networks, their parameters and multiply-adds",
    "data": "check a data set before training, or cut the objects out of pictures with boxes",
    "study": "networks compared: each trained several times on the same images in the same order",
    "bench": "time and memory of any models on this machine, side by side",
    "yolo": "the command line of Ultralytics YOLO, with our modules and `selectify=WHERE`",
    "doctor": "versions, devices, cores, settings and missing packages of this machine",
}

HELP = f"""usage: selkern COMMAND [OPTIONS]

Selective-kernel networks (SK attention, SKNet) for PyTorch, version {__version__}.

commands:
{chr(10).join(f"  {name:10}{text}" for name, text in COMMANDS.items())}

`selkern train` with no options trains on the bundled digits, in minutes, and ends in a report.
`selkern COMMAND --help` shows a command's options; `--debug` anywhere shows the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code.

    0; 1 a rule is broken (`check`) or a package is missing; 2 usage, 3 data, 4 checkpoint, 5 resources, 6 numerics;
    130 or 143 stopped.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _dispatch(words)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that has left is noticed, and not when Python ends
        return code
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SelkernError, ImportError, UnicodeError, OSError) as error:
        ours = _as_ours(error, words)
        if debug or ours is None:
            raise
        print(f"error: {ours}", file=sys.stderr)
        return ours.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _as_ours(error: SelkernError | ImportError | UnicodeError | OSError, words: list[str]) -> SelkernError | None:
    """The error that is shown for one raised wherever in a command; None for a mistake in selkern itself."""
    if isinstance(error, SelkernError):
        return error
    if isinstance(error, ImportError):
        return missing(error, f"selkern {words[0]}")
    if isinstance(error, UnicodeError):  # a file that should be text
        return UsageError(f"not UTF-8 ({error})", " ".join(words[:3]), "save or name it as UTF-8")
    # A disk that is full or broken.
    fix = "free space, or choose a folder that can be read and written"
    return ResourceError(error.strerror or str(error), str(error.filename or words[0]), fix)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("-V", "--version"):
        print(f"selkern {__version__}")
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {words[0]!r}", "selkern", fix)
    try:
        return int(import_module(f"selkern.cli.{words[0]}").main(words[1:]))
    except SystemExit as stop:  # help was asked for and printed
        if stop.code:  # code of the user's, which `check` has run
            raise UsageError(f"the code ended the program ({stop.code})", " ".join(words[:2]), "mend it") from stop
        return 0
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise ResourceError("out of memory", words[0], "use a smaller --batch-size, or --accumulate 2") from error
        raise
