"""Files that are no data set, called what they are."""

from __future__ import annotations

from pathlib import Path

from selkern.data.advice import ARCHIVES
from selkern.data.decode import show
from selkern.data.formats import IMAGE_SUFFIXES
from selkern.errors import DataError

_TABLE = "save it as CSV (UTF-8) with the columns path,label"
_ARRAY = "write its images to files, in one folder per class"
_SINGLE = "give a folder of class folders; `selkern predict RUN IMAGE` names the class of an image"
_KINDS = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), ("a spreadsheet", _TABLE)),
    **dict.fromkeys(
        (".json",), ("a JSON file", "give a CSV, or .jsonl with one object in each line: file_name, label")
    ),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), ("an Arrow file", "write it as Parquet")),
    **dict.fromkeys((".npz", ".npy"), ("a file of NumPy arrays", _ARRAY)),
    **dict.fromkeys((".h5", ".hdf5", ".mat"), ("a file of arrays (HDF5 or MATLAB)", _ARRAY)),
    **dict.fromkeys((".tfrecord", ".tfrecords"), ("a file of TensorFlow records", _ARRAY)),
    **dict.fromkeys((".lmdb", ".mdb", ".db", ".sqlite"), ("a database", _ARRAY)),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), ("a pickle, which can run code and is not opened", _ARRAY)),
    ".safetensors": ("a file of weights", "give images"),
    **dict.fromkeys((".txt", ".lst"), ("a text file", "if it lists images, make it a .csv that begins path,label")),
    **dict.fromkeys((".yaml", ".yml"), ("a YAML file", "give the folder of the images, or their table")),
    ".xml": ("an XML file", "if it holds boxes, cut them out by `selkern data import`"),
    **dict.fromkeys(ARCHIVES, ("an archive, whose images cannot be read in place", "unpack it and give the folder")),
    **dict.fromkeys(IMAGE_SUFFIXES, ("a single image", _SINGLE)),
}


def not_data(path: Path, accepted: str) -> DataError:
    """The error for a file that is no data set."""
    what, fix = _KINDS.get(path.suffix.lower(), ("unknown kind of data", accepted))
    return DataError(what, show(path), fix)
