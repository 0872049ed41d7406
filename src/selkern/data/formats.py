"""The formats that are decoded, by what a file holds; and the suffixes that files of each usually have.

A short list: each decoder is a door. Formats without a mark of their own (TGA), of several pictures (PSD, ICO), or that
run programs or fetch other files (EPS, WMF) are left out.
"""

from __future__ import annotations

from importlib.util import find_spec

# Pillow's name of each format -> usual suffixes; HEIF is decoded by pillow-heif.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "HEIF": (".heic", ".heif", ".hif"),
}
# A file of such a suffix is looked into: many hold JPEG or PNG, and HEIF needs a package of its own.
HEIF_SUFFIXES = frozenset(SUFFIXES["HEIF"])
IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes) - HEIF_SUFFIXES
# Pillow's JPEG opens MPO files itself.
FORMATS = tuple(name for name in SUFFIXES if name not in ("MPO", "HEIF"))

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_ANY_BRANDS = frozenset({b"mif1", b"msf1"})  # of the container: any codec may be inside
_AVIF_BRANDS = frozenset({b"avif", b"avis"})


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with these 64 bytes is a HEIF picture, and no AVIF."""
    if head[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, length, 4))}
    return bool(brands & (_HEIF_BRANDS | _ANY_BRANDS)) and not brands & _AVIF_BRANDS


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins with these 64 bytes is what Git LFS has in place of the file itself."""
    return head.startswith(b"version https://git-lfs.github.com/spec/")


def has_heif() -> bool:
    """Whether HEIF can be decoded here."""
    return find_spec("pillow_heif") is not None
