import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxprune.experiments import data

MNIST = Path(os.environ["JAXPRUNE_DATA"], "mnist") if "JAXPRUNE_DATA" in os.environ else None


def test_digits_are_split_the_same_way_each_time_with_every_class_in_proportion():
    first, second = data.digits(), data.digits()
    assert first.fingerprint() == second.fingerprint()
    assert [len(split.labels) for split in first] == [1078, 359, 360]
    assert data.TRAINING_IMAGES["digits"] == 1078
    for split in first:
        assert split.images.shape[1:] == (8, 8, 1) and split.images.dtype == np.float32
        shares = np.bincount(split.labels, minlength=10) / len(split.labels)
        assert np.abs(shares - 0.1).max() < 0.01
    assert abs(first.train.images.mean()) < 1e-5 and abs(first.train.images.std() - 1) < 1e-5


def test_no_digit_is_in_two_splits():
    from sklearn.datasets import load_digits

    kinds = {image.tobytes() for image in load_digits()["images"]}
    seen = [image.tobytes() for split in data.digits() for image in split.images]
    assert len(seen) == 1797 and len(set(seen)) == len(kinds)


def write_idx(path, array, cut=0):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content[: len(content) - cut]))


def test_an_idx_file_is_read(tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    write_idx(tmp_path / "a.gz", array)
    np.testing.assert_array_equal(data.read_idx(tmp_path / "a.gz"), array)


def test_a_damaged_idx_file_is_an_error_that_names_it(tmp_path):
    write_idx(tmp_path / "cut.gz", np.arange(24), cut=3)
    with pytest.raises(ValueError, match=r"cut\.gz must hold 24 numbers, got 21"):
        data.read_idx(tmp_path / "cut.gz")
    (tmp_path / "text.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"text\.gz is not a complete gzip file"):
        data.read_idx(tmp_path / "text.gz")
    (tmp_path / "empty.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.gz is empty"):
        data.read_idx(tmp_path / "empty.gz")
    write_idx(tmp_path / "whole.gz", np.arange(24))
    content = (tmp_path / "whole.gz").read_bytes()
    for length in range(1, len(content)):
        (tmp_path / "whole.gz").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"whole\.gz is not a complete gzip file"):
            data.read_idx(tmp_path / "whole.gz")
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"data can't be read: Is a directory"):
        data.read_idx(tmp_path / "data")
    for header, why in (
        (b"\0\0\x08\x02\0\0\0\x01\0", "must hold 2 extents, but it is cut off"),
        (b"\0\0\x08", "is not an IDX file"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "must hold 2 numbers, got 3"),
        (b"\0\0\x0d\x01\0\0\0\x02abcdefgh", "is not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "must hold .* numbers, got 0: it is cut off"),
    ):
        (tmp_path / "short.gz").write_bytes(gzip.compress(header))
        with pytest.raises(ValueError, match=rf"short\.gz {why}"):
            data.read_idx(tmp_path / "short.gz")
    (tmp_path / "other.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match=r"other\.gz is not an IDX file"):
        data.read_idx(tmp_path / "other.gz")


@pytest.mark.slow
def test_labels_that_are_no_digits_and_counts_that_differ_are_errors_that_name_the_file(tmp_path):
    shapes = [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
    for name, shape in zip(data.MNIST_FILES, shapes, strict=True):
        write_idx(tmp_path / name, np.zeros(shape, np.uint8))
    write_idx(tmp_path / data.MNIST_FILES[3], np.arange(10000) == 5000)
    found = data.mnist(tmp_path)
    assert len(found.train.labels) == data.TRAINING_IMAGES["mnist"] and found.test.labels.sum() == 1
    write_idx(tmp_path / data.MNIST_FILES[3], 10 * (np.arange(10000) == 5000))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz must hold labels from 0 to 9, got 10"):
        data.mnist(tmp_path)
    write_idx(tmp_path / data.MNIST_FILES[1], np.zeros(59999))
    with pytest.raises(
        ValueError, match=r"train-labels-idx1-ubyte\.gz must hold \(60000,\) numbers, got \(59999,\)"
    ):
        data.mnist(tmp_path)
    (tmp_path / data.MNIST_FILES[0]).unlink()
    with pytest.raises(ValueError, match=r"lacks train-images-idx3-ubyte\.gz; download it from"):
        data.mnist(tmp_path)
    with pytest.raises(ValueError, match=r"lacks train-images-idx3-ubyte\.gz \(there is no such folder\)"):
        data.mnist(tmp_path / data.MNIST_FILES[1])


def test_files_of_another_data_set_are_an_error(tmp_path):
    for name in data.MNIST_FILES:
        write_idx(tmp_path / name, np.zeros((5,)))
    with pytest.raises(ValueError, match="must hold"):
        data.mnist(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(MNIST is None, reason="the environment variable JAXPRUNE_DATA names no data folder")
def test_mnist_is_normalized_and_split():
    found = data.mnist(MNIST)
    assert [len(split.labels) for split in found] == [55000, 5000, 10000]
    pixels = np.concatenate([found.train.images, found.validation.images])
    assert abs(pixels.mean()) < 1e-3 and abs(pixels.std() - 1) < 1e-3
