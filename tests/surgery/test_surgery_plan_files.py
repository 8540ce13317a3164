"""Files of plans and tables: whole or not there, and a damaged one is an error that names it."""

import io
import json
import zipfile

import numpy as np
import pytest

import jaxprune as jp

FORMAT = "jaxprune plan 1"
MASK = np.array([True, False])


def plan():
    kept = {"a/w": (None, np.array([True, False, True])), "b": (np.array([True, False, True]),), "s": ()}
    return jp.Plan({"a/w": (4, 3), "b": (3,), "s": ()}, kept)


def archive(header, **arrays):
    buffer = io.BytesIO()
    np.savez(
        buffer, header=header if isinstance(header, np.ndarray) else np.array(json.dumps(header)), **arrays
    )
    return buffer.getvalue()


def one(axis=("w", 0), shape=(2,), **arrays):
    return archive({"format": FORMAT, "shapes": {"w": list(shape)}, "axes": [list(axis)]}, **arrays)


def zipped(compression=zipfile.ZIP_STORED, **parts):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in parts.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def claim(shape, dtype="|b1"):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def header_bytes(shape):
    buffer = io.BytesIO()
    np.save(buffer, np.array(json.dumps({"format": FORMAT, "shapes": {"w": shape}, "axes": [["w", 0]]})))
    return buffer.getvalue()


DAMAGED = {
    "empty": (b"", "not a zip file"),
    "text": (b"a plan", "not a zip file"),
    "no header": (zipped(other=b""), "lacks 'header.npy'"),
    "a header that is cut": (zipped(header=b"\x93NUM"), "not a 'jaxprune plan 1' file"),
    "a header of objects": (archive(np.array([None], object)), "does not hold"),
    "a header of bytes": (archive(np.array(b"{}")), "header must be a text"),
    "no JSON": (archive(np.array("{")), "Expecting property name"),
    "deep JSON": (archive(np.array("[" * 100_000)), "RecursionError"),
    "a list": (archive([1]), "its format is None"),
    "a newer format": (archive({"format": "jaxprune plan 2"}), "a newer version of jaxprune wrote it"),
    "no shapes": (archive({"format": FORMAT, "axes": []}), "lacks `shapes` or `axes`"),
    "a negative size": (archive({"format": FORMAT, "shapes": {"w": [-2]}, "axes": []}), "is not a shape"),
    "a size that is a bool": (
        archive({"format": FORMAT, "shapes": {"w": [True]}, "axes": []}),
        "is not a shape",
    ),
    "an unknown path": (one(axis=("v", 0), kept_0=MASK), "not an axis of its parameters"),
    "an axis from the end": (one(axis=("w", -1), kept_0=MASK), "not an axis of its parameters"),
    "no mask": (one(), "lacks 'kept_0.npy'"),
    "another length": (one(shape=(3,), kept_0=MASK), "must be bool of shape"),
    "another dtype": (one(kept_0=MASK.astype(int)), "must be bool of shape"),
    "objects": (one(kept_0=MASK.astype(object)), "does not hold"),
    "no bools": (zipped(header=header_bytes([2]), kept_0=claim((2,)) + b"\x01\x07"), "not bools"),
    "1 TiB": (zipped(header=header_bytes([1 << 40]), kept_0=claim((1 << 40,))), "does not hold"),
    "compressed": (zipped(zipfile.ZIP_DEFLATED, header=b"0" * 100_000), "it is compressed"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_no_plan_is_named(name, tmp_path):
    content, message = DAMAGED[name]
    path = tmp_path / "plan.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"plan\.npz' is not a 'jaxprune plan 1' file: ") as raised:
        jp.Plan.load(path)
    assert message in str(raised.value)


def test_no_cut_and_no_flipped_byte_gives_another_plan(tmp_path):
    path = tmp_path / "plan.npz"
    plan().save(path)
    good, wanted = path.read_bytes(), plan().small_shapes
    assert jp.Plan.load(path).small_shapes == wanted
    numbers = np.random.default_rng(0)
    damaged = [good[:end] for end in range(0, len(good), 7)]
    for _ in range(200):
        content = bytearray(good)
        content[numbers.integers(len(good))] = numbers.integers(256)
        damaged.append(bytes(content))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        found = widths_or_error(path)
        assert found == wanted or "plan.npz" in found  # a byte may be one that nothing reads
        refused += found != wanted
    assert refused > len(damaged) / 2


def widths_or_error(path):
    try:
        return jp.Plan.load(path).small_shapes
    except ValueError as error:
        return str(error)


def test_saving_is_all_or_nothing(tmp_path):
    path = tmp_path / "plan.npz"
    plan().save(path)
    good = path.read_bytes()
    with pytest.raises(ValueError, match=r"mask of axis 0 of 'w' must be bool of shape \(3,\)"):
        jp.Plan({"w": (3,)}, {"w": (MASK,)}).save(path)
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == ["plan.npz"]
    with pytest.raises(FileNotFoundError):
        plan().save(tmp_path / "none" / "plan.npz")


def test_a_damaged_table_of_sensitivities_is_named(tmp_path):
    table = jp.Sensitivity(("a", "b"), (0.5,), np.array([[1.0], [np.inf]]), 1.0, (3, 1), (3, 1), ("c",))
    path = tmp_path / "table.json"
    table.save(path)
    good = path.read_bytes()
    assert str(jp.Sensitivity.load(path)) == str(table)
    shorter = json.dumps({**json.loads(good), "units": [3]}).encode()
    for content in (b"", good[:40], b"\xff", b"null", b"[" * 100_000, shorter):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"table\.json' is not a 'jaxprune sensitivity 1' file"):
            jp.Sensitivity.load(path)


def test_a_folder_is_no_plan_and_a_missing_file_is_missing(tmp_path):
    with pytest.raises(ValueError, match="is not a"):
        jp.Plan.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        jp.Plan.load(tmp_path / "none")
