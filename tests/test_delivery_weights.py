"""Weights in safetensors files: exact, small, and read only as far as they are what they claim."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.delivery import packing, standalone


def sparse(share, shape=(256, 256), dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(dtype)
    x[rng.permutation(x.size).reshape(shape) < round(share * x.size)] = 0
    return x


def pattern(n, m, axis, shape=(64, 32, 16), seed=0):
    moved = [size for i, size in enumerate(shape) if i != axis] + [shape[axis]]
    rng = np.random.default_rng(seed)
    kept = rng.random((np.prod(shape) // m, m)).argsort(1) < n
    kept = np.moveaxis(kept.reshape(moved), -1, axis)
    return np.where(kept, rng.normal(size=shape), 0).astype(np.float32)


def saved(tmp_path, tree, **options):
    path = tmp_path / "weights.safetensors"
    jp.save_weights(path, tree, **options)
    return path


@pytest.mark.parametrize(
    ("array", "most"),
    [(sparse(0.7), 0.34), (sparse(0.9), 0.14), (pattern(2, 4, 1), 0.57), (pattern(1, 4, 0), 0.29)],
    ids=["70 %", "90 %", "2:4", "1:4"],
)
def test_zeros_take_a_bit_or_less(tmp_path, array, most):
    path = saved(tmp_path, {"kernel": array})
    assert path.stat().st_size <= most * array.nbytes
    assert jp.load_weights(path)["kernel"].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.float16,
        np.float64,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        np.int8,
        np.complex64,
        bool,
    ],
)
@pytest.mark.parametrize("share", [0, 0.5, 0.95, 1])
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype, share):
    array = sparse(share, (64, 40)).astype(dtype)
    if np.dtype(dtype).kind in "fcV":
        array[0, 0], array[0, 1] = -0.0, np.nan
    found = jp.load_weights(saved(tmp_path, {"w": array}))["w"]
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()


@given(
    st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 8), (1, 16)]),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_patterns_come_back_whichever_axis_they_lie_along(nm, axis, with_empty_groups, seed):
    array = pattern(*nm, axis, (16, 32, 16), seed)
    if with_empty_groups:
        array[:, :, :3] = 0
    packed = packing.pack(array)
    assert packing.unpack(packed).tobytes() == array.tobytes()


def test_places_in_groups_are_used_where_they_are_smaller():
    assert packing.pack(pattern(2, 4, 1))[3:] == (1, 2, 4)
    assert packing.pack(pattern(1, 8, 0))[3:] == (0, 1, 8)
    assert packing.pack(sparse(0.5))[4:] == (0, 0)
    assert packing.pack(sparse(0)) is None
    for small in (np.float32(0), np.zeros(0, np.float32), np.zeros((3, 0)), np.zeros(4, np.float32)):
        assert packing.pack(np.asarray(small)) is None


def test_plain_numpy_reads_what_was_packed(tmp_path):
    tree = {
        "a": sparse(0.8),
        "b": {"c": pattern(2, 4, 0), "d": sparse(0.9, dtype=ml_dtypes.bfloat16)},
        "e": np.arange(5),
    }
    found = standalone.read(saved(tmp_path, tree))
    assert found["a"].tobytes() == tree["a"].tobytes()
    assert np.ascontiguousarray(found["b/c"]).tobytes() == tree["b"]["c"].tobytes()
    assert found["b/d"].dtype == np.float32
    assert np.array_equal(found["b/d"], tree["b"]["d"].astype(np.float32))
    assert np.array_equal(found["e"], tree["e"])


def test_the_library_reads_plain_files_and_we_read_its_own(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    tree = {"a/b": sparse(0.8, (8, 4)), "c": np.arange(3, dtype=np.int16), "d": np.zeros((2, 0), np.float32)}
    found = numpy.load_file(saved(tmp_path, tree, packed=False, metadata={"note": "hello"}))
    assert found.keys() == tree.keys()
    for name, array in tree.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    packed = saved(tmp_path, {"w": sparse(0.9)})
    assert set(numpy.load_file(packed)) == {"w.values", "w.where"}
    numpy.save_file(tree, tmp_path / "theirs.safetensors")
    ours = jp.load_weights(tmp_path / "theirs.safetensors")
    assert all(np.array_equal(ours[name], array) for name, array in tree.items())


def test_trees_of_frameworks_come_back_as_they_were(tmp_path):
    eqx, nnx = pytest.importorskip("equinox"), pytest.importorskip("flax.nnx")
    linear = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
    _, state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param, ...)[0:2]
    plain = {"w": jnp.ones((2, 2), jnp.bfloat16), "n": np.arange(3), "step": 7, "rate": 0.5, "on": True}
    for tree in (linear, state, plain, [jnp.ones(2), (jnp.zeros(1),)]):
        found = jp.load_weights(saved(tmp_path, tree), like=tree)
        assert jax.tree.structure(found) == jax.tree.structure(tree)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
            if hasattr(b, "dtype"):
                assert type(a) is type(b) and a.dtype == b.dtype and bool((a == b).all())
            else:
                assert a is b or (type(a) is type(b) and a == b)


@pytest.mark.parametrize(
    ("tree", "error", "says"),
    [
        ({"a": {"b": np.ones(2)}, "a/b": np.ones(2)}, ValueError, "two leaves .* 'a/b'"),
        ({"a": sparse(0.9), "a.values": np.ones(2)}, ValueError, "'a.values'"),
        ({"__metadata__": np.ones(2)}, ValueError, "__metadata__"),
        ({"f": "text"}, ValueError, "no arrays"),
        ({"key": jax.random.key(0)}, TypeError, "PRNG keys, got one at 'key'"),
        ({"w": np.ones(2, np.complex128)}, TypeError, "complex128 arrays, got one at 'w'"),
    ],
)
def test_what_cannot_be_stored_is_an_error_and_leaves_the_file(tmp_path, tree, error, says):
    path = saved(tmp_path, {"old": np.ones(1)})
    with pytest.raises(error, match=says):
        jp.save_weights(path, tree)
    assert list(jp.load_weights(path)) == ["old"] and len(list(tmp_path.iterdir())) == 1


def parts(path):
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def written(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_like_must_fit(tmp_path):
    path = saved(tmp_path, {"w": np.ones((2, 3), np.float32)})
    for like, says in (
        ({"w": np.ones((3, 2), np.float32)}, r"shape \(2, 3\) at 'w'"),
        ({"w": np.ones((2, 3), np.int32)}, "float32 .* at 'w'"),
        ({"v": np.ones((2, 3), np.float32)}, "'v'"),
        ({"w": np.ones((2, 3), np.float32), "x": 1.0}, "'x'"),
    ):
        with pytest.raises(ValueError, match=says):
            jp.load_weights(path, like=like)


def test_every_truncation_is_an_error(tmp_path):
    path = saved(tmp_path, {"a": sparse(0.9, (32, 32)), "b": np.arange(3)})
    raw = path.read_bytes()
    for cut in [*range(40), *range(40, len(raw), 7), len(raw) - 1]:
        path.write_bytes(raw[:cut])
        with pytest.raises(ValueError, match="can't be read as safetensors"):
            jp.load_weights(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(ValueError, match="describes"):
        jp.load_weights(path)


HUGE = 10**15


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["w.values"].update(shape=[HUGE]),
        lambda h: h["w.values"].update(data_offsets=[0, HUGE]),
        lambda h: h["w.values"].update(data_offsets=[-8, 0]),
        lambda h: h["w.where"].update(data_offsets=h["w.values"]["data_offsets"]),
        lambda h: h["w.values"].update(dtype="F4"),
        lambda h: h["w.values"].update(shape=[True]),
        lambda h: h["w.values"].update(more=1),
        lambda h: h.pop("w.where"),
        lambda h: h.update(__metadata__=3),
        lambda h: h["__metadata__"].update(packed="[]"),
        lambda h: h["__metadata__"].update(packed="{"),
        lambda h: h["__metadata__"].update(packed='{"w": [[65536], 0, 0]}'),
        lambda h: h["__metadata__"].update(packed=f'{{"w": [[{HUGE}], 0, 0, 0]}}'),
        lambda h: h["__metadata__"].update(packed=f'{{"w": [[{HUGE}], 0, 1, {HUGE}]}}'),
        lambda h: h["__metadata__"].update(packed='{"w": [[256, 256], 5, 0, 0]}'),
        lambda h: h["__metadata__"].update(packed='{"w": [[256, 256], 1, 2, 4]}'),
        lambda h: h["__metadata__"].update(packed='{"w": [[256, 256], 1, 0, 4]}'),
        lambda h: h["__metadata__"].update(packed='{"w": [[256, -256], 1, 0, 0]}'),
        lambda h: h["__metadata__"].update(packed='{"w": [[0, ' + "9" * 40 + "], 1, 0, 0]}"),
        lambda h: h["__metadata__"].update(packed='{"other": [[256, 256], 1, 0, 0]}'),
        lambda h: h["__metadata__"].update(packed="[" * 100_000),
        lambda h: h["__metadata__"].update(format="jaxprune weights 2"),
    ],
)
def test_a_header_that_lies_is_an_error_before_anything_large_is_allocated(tmp_path, change):
    header, data = parts(saved(tmp_path, {"w": sparse(0.9)}))
    change(header)
    path = written(tmp_path / "bad.safetensors", header, data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bad.safetensors.* can't be read"):
        jp.load_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_values_and_places_that_do_not_fit_are_errors(tmp_path):
    header, data = parts(saved(tmp_path, {"w": sparse(0.9)}))
    first = header["w.where"]["data_offsets"][0]
    flipped = bytearray(data)
    flipped[first + 100] ^= 255  # other entries are kept: their number no longer fits
    with pytest.raises(ValueError, match=r"values for .* places"):
        jp.load_weights(written(tmp_path / "a", header, bytes(flipped)))
    header, data = parts(saved(tmp_path, {"w": pattern(2, 4, 1)}))
    first = header["w.where"]["data_offsets"][0]
    flipped = bytearray(data)
    flipped[first] = 0  # the same place twice
    with pytest.raises(ValueError, match="do not rise"):
        jp.load_weights(written(tmp_path / "b", header, bytes(flipped)))
    for text in (b"{}" * 3, b"[1]", b"[" * 99_999, b"\xff\xfe", b'{"a": 1, "a": 2}', b'{"a": null}'):
        with pytest.raises(ValueError, match="can't be read"):
            jp.load_weights(written(tmp_path / "c", text, b""))
    with pytest.raises(FileNotFoundError):
        jp.load_weights(tmp_path / "missing")


def test_random_damage_is_an_error_or_other_values(tmp_path):
    path = saved(tmp_path, {"a": sparse(0.9, (32, 32)), "b": pattern(2, 4, 1, (8, 8, 8))})
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(raw)
        for place in rng.integers(0, len(raw), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            found = jp.load_weights(path)
        except ValueError:
            continue
        assert sum(x.nbytes for x in found.values()) < 64 * len(raw)
