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
    """The data set of this name; `folder` holds MNIST's files."""
    if name == "digits":
        return digits()
    if folder is None:
        raise ValueError(
            f"--data mnist needs --data-dir, a folder with the files {', '.join(MNIST_FILES)}; "
            f"they can be had from {MNIST_ADDRESS}"
        )
    return mnist(folder)


def digits() -> Data:
    """scikit-learn's 1797 real digits of 8 x 8 pixels: 60 % train, 20 % validation, 20 % test.

    The split is always the same and has each class in proportion.
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
    """Full MNIST: 55 000 training images, the last 5 000 of them for validation, 10 000 test images."""
    arrays = [read_idx(_find(Path(folder), name)) for name in MNIST_FILES]
    for name, array, shape in zip(
        MNIST_FILES, arrays, [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)], strict=True
    ):
        if array.shape != shape:
            raise ValueError(f"{name} in {folder} must hold {shape} numbers, got {array.shape}.")
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
    """A gzipped IDX file of unsigned bytes: magic number, extents (big-endian), then the bytes."""
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}.") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if data.size != math.prod(shape):
        raise ValueError(f"{path} must hold {math.prod(shape)} numbers, got {data.size}: it is cut off.")
    return data.reshape(shape)


def _find(folder: Path, name: str) -> Path:
    # Some mirrors write a dot before `idx`.
    for candidate in (folder / name, folder / name.replace("-idx", ".idx")):
        if candidate.is_file():
            return candidate
    raise ValueError(f"--data-dir {folder} lacks {name}; it can be had from {MNIST_ADDRESS}")
