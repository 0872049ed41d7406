"""The packages that only some functions need: which extra brings each, and the error where one is absent."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from selkern.errors import PackageError


@dataclass(frozen=True)
class OptionalPackage:
    """A package that the core is installed without.

    Attributes:
        distribution: its name in a package index.
        module: the name it is imported under.
        extra: the extra of selkern that brings it.
    """

    distribution: str
    module: str
    extra: str


OPTIONAL = (
    OptionalPackage("pillow", "PIL", "train"),
    OptionalPackage("simplejpeg", "simplejpeg", "train"),
    OptionalPackage("pyarrow", "pyarrow", "train"),
    OptionalPackage("scikit-learn", "sklearn", "train"),
    OptionalPackage("scipy", "scipy", "train"),
    OptionalPackage("tyro", "tyro", "train"),
    OptionalPackage("pyyaml", "yaml", "train"),
    OptionalPackage("tqdm", "tqdm", "train"),
    OptionalPackage("matplotlib", "matplotlib", "train"),
    OptionalPackage("jinja2", "jinja2", "train"),
    OptionalPackage("protobuf", "google.protobuf", "convert"),
    OptionalPackage("huggingface_hub", "huggingface_hub", "hub"),
    OptionalPackage("timm", "timm", "timm"),
    OptionalPackage("pillow-heif", "pillow_heif", "heif"),
    OptionalPackage("onnx", "onnx", "export"),
    OptionalPackage("onnxscript", "onnxscript", "export"),
    OptionalPackage("onnxruntime", "onnxruntime", "export"),
    OptionalPackage("openvino", "openvino", "openvino"),
    OptionalPackage("nncf", "nncf", "openvino"),
    OptionalPackage("starlette", "starlette", "explore"),
    OptionalPackage("uvicorn", "uvicorn", "explore"),
    OptionalPackage("triton", "triton", "kernels"),
    OptionalPackage("ray", "ray", "ray"),
    OptionalPackage("fsspec", "fsspec", "remote"),
    OptionalPackage("aiohttp", "aiohttp", "remote"),
)
_EXTRAS = {package.module.partition(".")[0]: package.extra for package in OPTIONAL}


def missing(error: ImportError, where: str) -> PackageError | None:
    """The error to show instead of an `ImportError`, naming the extra that brings the package.

    Args:
        error: what the import raised.
        where: the command or argument that needs the package.

    Returns:
        None where no package can be blamed: the import failed within selkern.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "selkern"):
        return None
    if package in _EXTRAS:
        fix = f"pip install 'selkern[{_EXTRAS[package]}]'"
    elif package in sys.stdlib_module_names:
        fix = "use a Python that has it"
    else:
        fix = f"pip install {package}"
    absent = isinstance(error, ModuleNotFoundError) and error.name == package
    return PackageError(
        f"{package} is not installed" if absent else f"{package} cannot be imported ({error})", where, fix
    )
