import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxprune.demo import data

MNIST = Path(__file__).parents[2] / ".." / "shared" / "data" / "mnist"


def test_digits_are_split_the_same_way_each_time_with_every_class_in_proportion():
    first, second = data.digits(), data.digits()
    assert first.fingerprint() == second.fingerprint()
    assert [len(split.labels) for split in first] == [1078, 359, 360]
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
    with pytest.raises(ValueError, match=r"text\.gz is no whole gzip file"):
        data.read_idx(tmp_path / "text.gz")
    (tmp_path / "other.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match=r"other\.gz is not an IDX file"):
        data.read_idx(tmp_path / "other.gz")


def test_files_of_another_data_set_are_an_error(tmp_path):
    for name in data.MNIST_FILES:
        write_idx(tmp_path / name, np.zeros((5,)))
    with pytest.raises(ValueError, match="must hold"):
        data.mnist(tmp_path)


@pytest.mark.skipif(not MNIST.is_dir(), reason="full MNIST is not here")
def test_mnist_is_normalized_and_split():
    found = data.mnist(MNIST)
    assert [len(split.labels) for split in found] == [55000, 5000, 10000]
    pixels = np.concatenate([found.train.images, found.validation.images])
    assert abs(pixels.mean()) < 1e-3 and abs(pixels.std() - 1) < 1e-3
