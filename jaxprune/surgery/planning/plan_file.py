"""Plans as files: an uncompressed `.npz` of a JSON header and bool arrays, which is checked before it is read."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy

from jaxprune.files import write_whole

FORMAT = "jaxprune plan 1"
Shapes = Mapping[str, tuple[int, ...]]
Kept = Mapping[str, tuple[np.ndarray | None, ...]]


def write_plan(path: str | os.PathLike, shapes: Shapes, kept: Kept) -> None:
    """Writes the complete file, or no file at all."""
    arrays, axes = {}, []
    for name, masks in kept.items():
        for dim, mask in enumerate(masks):
            if mask is not None:
                arrays[f"kept_{len(axes)}"] = _checked(np.asarray(mask), name, dim, shapes)
                axes.append([name, dim])
    header = {"format": FORMAT, "shapes": {k: [int(n) for n in v] for k, v in shapes.items()}, "axes": axes}
    write_whole(path, lambda file: np.savez(file, header=np.array(json.dumps(header)), **arrays))


def read_plan(path: str | os.PathLike) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[Any, ...]]]:
    """Shapes and masks of a file that `write_plan` wrote.

    Raises:
      ValueError: if the file is not a plan or is damaged, or if its masks do not fit its shapes.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            return _read(archive, os.fstat(file.fileno()).st_size)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged archive may raise anything, and a folder is none
        said = f"{'' if type(error) is ValueError else type(error).__name__ + ': '}{str(error)[:300]}"
        raise ValueError(f"{os.fspath(path)!r} is not a {FORMAT!r} file: {said}.") from None


def _read(archive: zipfile.ZipFile, size: int) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    members = {member.filename: member for member in archive.infolist()}
    # No part is compressed, so a file can't announce more data than it contains.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise ValueError("it is compressed, which a plan is not")
    if sum(member.file_size for member in archive.infolist()) > size:
        raise ValueError("its parts are larger than the file")
    header = json.loads(_text(archive, members))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        newer = " (a newer version of jaxprune wrote it)" if str(found).startswith(FORMAT[:-1]) else ""
        raise ValueError(f"its format is {found!r}{newer}")
    if not (isinstance(header.get("shapes"), dict) and isinstance(header.get("axes"), list)):
        raise ValueError("its header lacks `shapes` or `axes`")
    shapes = {name: _shape(name, shape) for name, shape in header["shapes"].items()}
    kept: dict[str, list[np.ndarray | None]] = {name: [None] * len(shape) for name, shape in shapes.items()}
    for i, axis in enumerate(header["axes"]):
        name, dim = _axis(axis, shapes)
        if kept[name][dim] is not None:
            raise ValueError(f"it has two masks for axis {dim} of {name!r}")
        part = f"kept_{i}.npy"
        if part not in members:
            raise ValueError(f"it lacks {part!r}, the mask of axis {dim} of {name!r}")
        mask = _array(archive.read(members[part]), part)
        kept[name][dim] = _checked(mask, name, dim, shapes)
    return shapes, {name: tuple(masks) for name, masks in kept.items()}


def _text(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> str:
    if "header.npy" not in members:
        raise ValueError("it lacks 'header.npy'")
    header = _array(archive.read(members["header.npy"]), "header.npy")
    if header.dtype.kind != "U" or header.shape != ():
        raise ValueError(f"its header must be a text, got {header.dtype} of shape {header.shape}")
    return str(header)


def _array(content: bytes, part: str) -> np.ndarray:
    """Reads an array in the `.npy` format. NumPy's own reader would allocate whatever shape the file announces."""
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{part!r} is of version {version} of the .npy format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    count = math.prod(shape)
    if dtype.hasobject or count * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{part!r} does not hold the {dtype} array of shape {shape} that it claims")
    return np.frombuffer(content, dtype, count, stream.tell()).reshape(shape)


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{shape!r} is not a shape, at {name!r}")
    return tuple(shape)


def _axis(axis: Any, shapes: Shapes) -> tuple[str, int]:
    match axis:
        case [str(name), int(dim)] if name in shapes and type(dim) is int and 0 <= dim < len(shapes[name]):
            return name, dim
    raise ValueError(f"{axis!r} is not an axis of its parameters")


def _checked(mask: np.ndarray, name: str, dim: int, shapes: Shapes) -> np.ndarray:
    if name not in shapes or not dim < len(shapes[name]):
        raise ValueError(f"there is a mask for axis {dim} of {name!r}, which has no such axis")
    if mask.dtype != bool or mask.shape != (shapes[name][dim],):
        raise ValueError(
            f"the mask of axis {dim} of {name!r} must be bool of shape {(shapes[name][dim],)}, "
            f"got {mask.dtype} of shape {mask.shape}"
        )
    if mask.size and mask.view(np.uint8).max() > 1:
        raise ValueError(f"the mask of axis {dim} of {name!r} has bytes that are not bools")
    return mask
