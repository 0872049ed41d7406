"""Synthetic data sets of ImageNet's size, made for a measurement and never kept with the project.

python benchmarks/synthetic.py files /tmp/million                 # 1,281,167 small JPEGs in 1,000 folders: 5 GB
python benchmarks/synthetic.py photos /tmp/photos --count 2000    # JPEGs of 500 x 375 px with detail
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.pipeline import write_jpegs

IMAGES, CLASSES, VALIDATION = 1_281_167, 1000, 50_000  # of ImageNet-1k


def small_files(root: Path, images: int = IMAGES, classes: int = CLASSES, validation: int = VALIDATION) -> None:
    """train/ and val/ of class folders named as ImageNet's: JPEGs of 32 px, no two with the same bytes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("val", validation)):
        for label in range(classes):
            folder = root / split / f"n{1440764 + 7919 * label:08}"
            folder.mkdir(parents=True)
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG", quality=30)
            picture = stream.getvalue()
            for number in range(label, count, classes):
                # What follows the end of a JPEG is not read.
                (folder / f"{folder.name}_{number}.JPEG").write_bytes(picture + number.to_bytes(4, "little"))


def main() -> None:
    """Make one of the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("files", "photos"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=0, help="images; by default ImageNet's, or 2,000 photos")
    words = parser.parse_args()
    words.folder.mkdir(parents=True)  # nothing that is there is added to
    if words.kind == "files":
        small_files(words.folder, words.count or IMAGES)
    else:
        write_jpegs(words.folder, words.count or 2000)


if __name__ == "__main__":
    main()
