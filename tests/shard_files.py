"""Small tar shards for the tests: pictures of two classes, and members of any kind."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(number: int = 0, form: str = "JPEG", side: int = 20) -> bytes:
    """An image that differs by its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 2, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def photos(root: Path, train: int = 30, val: int = 6) -> Path:
    """train/ and val/ with folders of cats, which are red, and dogs, which are green."""
    rng = np.random.default_rng(0)
    for split, images in (("train", train), ("val", val)):
        for colour, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 80, (40, 44, 3))
                pixels[..., colour] += 150
                file = folder / f"{number:02}.{'jpg' if number % 2 else 'png'}"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root


def member(key: str, label: int | str | None = None, **others: str | bytes) -> list[tuple[str, bytes]]:
    """A picture, its label, and further members of its key: (name, bytes) of each."""
    image = picture(sum(key.encode()))
    texts = {**({} if label is None else {"cls": str(label)}), **others}
    data = {suffix: text if isinstance(text, bytes) else text.encode() for suffix, text in texts.items()}
    return [(f"{key}.jpg", image), *((f"{key}.{suffix}", value) for suffix, value in data.items())]


def write_tar(file: Path, *members: tuple[str, bytes], **how: Any) -> Path:
    """A tar of these members."""
    with tarfile.open(file, "w", **how) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file
