"""Handwritten digits: scikit-learn's small ones, or full MNIST from its four files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Name = Literal["digits", "mnist"]

MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
MNIST_ADDRESS = "https://storage.googleapis.com/cvdf-datasets/mnist/"
TRAINING_IMAGES: dict[Name, int] = {"digits": 1078, "mnist": 55000}
_MEAN, _STD = 0.1307, 0.3081


class Split(NamedTuple):
    """images: float32 (N, H, W, 1), normalised; labels: int32 (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Data(NamedTuple):
    """Three splits without a common image."""

    train: Split
    validation: Split
    test: Split

    def fingerprint(self) -> str:
        """A checksum of every image and label."""
        value = 0
        for split in self:
            for array in split:
                value = zlib.crc32(array.tobytes(), value)
        return f"{value:08x}"


def load(name: Name, folder: str | None = None) -> Data:
    """The data set of this name; `folder` holds the files of MNIST."""
    if name == "digits":
        return digits()
    if not folder:
        raise ValueError(
            f"--data mnist needs --data-dir, a folder with the files {', '.join(MNIST_FILES)}; "
            f"download them from {MNIST_ADDRESS}"
        )
    return mnist(folder)


def digits() -> Data:
    """scikit-learn's 1797 real digits of 8 x 8 pixels: 60 % train, 20 % validation, 20 % test.

    The split is always the same, with the same proportions of classes.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    pixels = found["images"].astype(np.float32)[..., None]
    labels = found["target"].astype(np.int32)
    train, rest = train_test_split(np.arange(len(labels)), test_size=0.4, stratify=labels, random_state=0)
    validation, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    mean, std = pixels[train].mean(), pixels[train].std()
    images = (pixels - mean) / std
    return Data(*(Split(images[at], labels[at]) for at in (train, validation, test)))


def mnist(folder: str | Path) -> Data:
    """Full MNIST: 55 000 training images, the last 5 000 of them for validation, 10 000 test images.

    Raises:
      ValueError: if there is no such folder, or a file is missing or is not that of MNIST; the message names it.
    """
    paths = [_find(Path(folder), name) for name in MNIST_FILES]
    arrays = [read_idx(path) for path in paths]
    for path, array, shape in zip(
        paths, arrays, [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)], strict=True
    ):
        if array.shape != shape:
            raise ValueError(f"{path} must hold {shape} numbers, got {array.shape}.")
        if len(shape) == 1 and array.max() > 9:
            raise ValueError(f"{path} must hold labels from 0 to 9, got {array.max()}.")
    images, labels, test_images, test_labels = arrays

    def split(pixels: np.ndarray, classes: np.ndarray) -> Split:
        scaled = (pixels.astype(np.float32) / 255 - _MEAN) / _STD
        return Split(scaled.astype(np.float32)[..., None], classes.astype(np.int32))

    return Data(
        split(images[:55000], labels[:55000]),
        split(images[55000:], labels[55000:]),
        split(test_images, test_labels),
    )


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes: magic number, extents (big-endian), then the bytes.

    Raises:
      ValueError: if the file can't be read, is not a gzip or IDX file, or does not hold the number of bytes in its
        header.
    """
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}.") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}.") from None
    if not content:
        raise ValueError(f"{path} is empty.")
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path} must hold {content[3]} extents, but it is cut off.")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    size = len(content) - start
    if size != math.prod(shape):
        cut = ": it is cut off" if size < math.prod(shape) else ""
        raise ValueError(f"{path} must hold {math.prod(shape)} numbers, got {size}{cut}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    # Some mirrors write a dot before `idx`.
    for candidate in (folder / name, folder / name.replace("-idx", ".idx")):
        if candidate.exists():
            return candidate
    why = "" if folder.is_dir() else " (there is no such folder)"
    raise ValueError(f"--data-dir {folder} lacks {name}{why}; download it from {MNIST_ADDRESS}")
