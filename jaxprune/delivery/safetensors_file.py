"""Files in the safetensors format: a JSON header and the bytes of arrays, which is checked before it is read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxprune.files import write_whole

METADATA = "__metadata__"
_LARGEST_HEADER = 100_000_000  # that of the format
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    **{f"{kind.upper()}{8 * size}": np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "C64": np.dtype("<c8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes the complete file, or no file at all.

    Raises:
      TypeError: if the format has no name for the dtype of an array.
      ValueError: if an array has the name of the metadata.
    """
    if METADATA in arrays:
        raise ValueError(f"{METADATA!r} is the name of a safetensors file's metadata: rename this leaf.")
    # The widest dtypes first, so that each array is aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    begin = 0
    for name in names:
        array = arrays[name]
        end = begin + array.nbytes
        shape = [int(n) for n in array.shape]
        header[name] = {
            "dtype": dtype_name(name, array.dtype),
            "shape": shape,
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: Any) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = arrays[name]
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(np.ascontiguousarray(little).tobytes())

    write_whole(path, write)


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a file; no more is read than the file holds.

    Raises:
      ValueError: if the file is cut off, or its header is no header of this format, has shapes, dtypes or places that
        do not fit each other, or describes other data than the file holds.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise ValueError("it is cut off, or is no safetensors file")
        header = _header(file.read(length))
        metadata = _metadata(header.pop(METADATA, {}))
        entries = {name: _entry(name, value) for name, value in header.items()}
        _check_places(entries, size - 8 - length)
        arrays = {}
        for name, (dtype, shape, begin, end) in entries.items():
            file.seek(8 + length + begin)
            content = bytearray(file.read(end - begin))
            array = np.frombuffer(content, dtype).reshape(shape)
            if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
                raise ValueError(f"{name!r} has bytes that are not bools")
            arrays[name] = array
        return arrays, metadata


def dtype_name(name: str, dtype: np.dtype) -> str:
    """What the format calls a dtype."""
    for code, known in DTYPES.items():
        if known == dtype.newbyteorder("<"):
            return code
    raise TypeError(f"a safetensors file has no {dtype} arrays, got one at {name!r}: convert it first.")


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("its header is no text") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError("its metadata are not texts")
    return found


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, end]} if len(entry) == 3:
            pass
        case _:
            raise ValueError(f"the header of {name!r} lacks `dtype`, `shape` or `data_offsets`, or has more")
    if code not in DTYPES:
        raise ValueError(f"{name!r} has the dtype {code!r}, which is not one of {', '.join(DTYPES)}")
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"the shape or the place of {name!r} is not of whole numbers")
    dtype = DTYPES[code]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} does not hold the {code} array of shape {tuple(shape)} that it claims")
    return dtype, tuple(shape), begin, end


def _check_places(entries: Mapping[str, tuple[np.dtype, tuple[int, ...], int, int]], size: int) -> None:
    """Raises ValueError unless the arrays lie one after the other and fill the rest of the file."""
    at = 0
    for begin, end, name in sorted((begin, end, name) for name, (_, _, begin, end) in entries.items()):
        if begin != at:
            raise ValueError(f"{name!r} overlaps the array before it, or there is a gap between the two")
        at = end
    if at != size:
        raise ValueError(f"its header describes {at} bytes, but {size} follow")
