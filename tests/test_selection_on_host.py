"""Selection by NumPy: sizes at which it samples, its pieces, and where the masks lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.selection import is_fine, on_host, select
from jaxprune.selection.on_host import keep_on_host

N = 600_000
RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(N).astype(np.float32)
LARGE = {
    "positive": np.abs(NORMAL),
    "signed": NORMAL,
    "one value at 90 %": np.where(RNG.random(N) < 0.9, 0, NORMAL).astype(np.float32),
    "seven values": np.round(NORMAL).astype(np.float32),
    "constant": np.full(N, -2.5, np.float32),
    "rising": np.arange(N, dtype=np.float32),
    "a few apart": np.where(np.arange(N) < 5, 1e30, np.arange(N) % 7 * 1e-45).astype(np.float32),
    "NaN and infinities": RNG.choice([np.nan, -np.nan, np.inf, -np.inf, 1], N).astype(np.float32),
    "thousands of values around two": (RNG.choice([1, 1000], N) + RNG.integers(0, 3000, N) / 1e5).astype(
        np.float32
    ),
}


def expected(scores, k, pruned):
    """Which entries stay, by a stable sort."""
    wide = scores.astype(np.float64)
    rank = np.where(pruned, 0, np.where(np.isnan(wide), 1, 2))
    order = np.lexsort((np.where(rank < 2, 0, wide), rank))
    keep = ~pruned
    keep[order[:k]] = False
    return keep


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LARGE)
def test_many_scores_keep_what_a_stable_sort_keeps(name, dtype):
    scores = LARGE[name].astype(dtype)
    some = np.random.default_rng(1).random(N) < 0.3
    for pruned, shares in ((np.zeros(N, bool), (0, 0.05, 0.5, 0.9, 1)), (some, (0.1, 0.8))):
        for share in shares:
            k = round(share * N)
            parts = [
                x.reshape(shape)
                for x, shape in zip(np.split(scores, [200_000]), [(400, 500), -1], strict=True)
            ]
            done = [x.reshape(s.shape) for x, s in zip(np.split(pruned, [200_000]), parts, strict=True)]
            found = keep_on_host(parts, done if pruned.any() else [None, None], k)
            np.testing.assert_array_equal(
                np.concatenate([f.ravel() for f in found]), expected(scores, k, pruned)
            )


@settings(deadline=None, max_examples=150)
@given(
    values=st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=300),
    repeats=st.integers(1, 4),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_a_sample_may_be_wrong(values, repeats, share, seed):
    """Samples of eight scores: their bracket often misses."""
    scores = np.array(values * repeats, np.float32)
    pruned = np.random.default_rng(seed).random(scores.size) < 0.2
    k = round(share * scores.size)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_SAMPLE": 8, "_SMALL": 3, "_PIECE": 16, "_DEVIATIONS": 0.1}.items():
            patch.setattr(on_host, name, value)
        (found,) = keep_on_host([scores], [pruned], k)
    np.testing.assert_array_equal(found, expected(scores, k, pruned))


def test_leaves_of_several_types_are_compared_as_float32():
    scores = [
        np.array([1, 3e-5], np.float16),
        np.array([1.01, 2], jnp.bfloat16),
        np.array([1.005], np.float32),
    ]
    keeps = keep_on_host(scores, [None] * 3, 3)
    assert [keep.tolist() for keep in keeps] == [[False, False], [True, True], [False]]


def test_numpy_scores_give_numpy_masks_and_jax_arrays_stay_where_they_are():
    assert isinstance(select([np.ones(3, np.float32)], 1)[0], np.ndarray)
    devices = jax.devices()
    leaves = [jax.device_put(np.arange(6.0, dtype=np.float32), devices[i]) for i in (1, 3)]
    for k in (5, [3, 2]):
        keeps = select(leaves, k)
        assert [keep.devices() for keep in keeps] == [{devices[1]}, {devices[3]}]
        assert all(keep.committed for keep in keeps)
        assert sum(int((~keep).sum()) for keep in map(np.asarray, keeps)) == 5
    assert not select([jnp.ones(3)], 1)[0].committed


@pytest.mark.parametrize("scope", ["global", "local"])
def test_masks_of_leaves_on_different_devices(scope):
    devices = jax.devices()
    scores = {f"w{i}": jax.device_put(jnp.arange(8.0).reshape(2, 4) + i, devices[i]) for i in range(3)}
    masks = jp.make_masks(scores, 0.5, scope=scope)
    assert [mask.devices() for mask in masks.values()] == [{device} for device in devices[:3]]
    assert sum(int((~np.asarray(mask)).sum()) for mask in masks.values()) == 12


def test_masks_and_later_writes_to_the_scores_are_apart():
    scores = {"w": np.array([[3.0, 1.0, 2.0]], np.float32)}
    masks = jp.make_masks(scores, 1 / 3)
    scores["w"][:] = 0
    np.testing.assert_array_equal(masks["w"], [[True, False, True]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "float8_e4m3fn"])
def test_scores_that_are_no_numbers_are_seen(dtype):
    good = np.array([[-3, 0, 2]]).astype(dtype)
    assert is_fine(good) and is_fine(good[:0])
    bad = good.copy()
    bad[0, 1] = np.nan
    assert not is_fine(bad)
    if dtype != "float8_e4m3fn":  # which has no infinities
        for value, fine in ((-np.inf, False), (np.inf, True)):
            bad[0, 1] = value
            assert is_fine(bad) is fine


def test_concrete_scores_inside_jit_are_read_while_it_is_traced():
    scores = {"w": jnp.array([[3.0, 1.0], [2.0, 4.0]])}
    masks = jax.jit(lambda x: jax.tree.map(lambda m: m & (x > 0), jp.make_masks(scores, 0.5)))(1.0)
    np.testing.assert_array_equal(masks["w"], [[True, False], [False, True]])


def test_empty_leaves_among_large_ones():
    leaves = [np.zeros((0, 3), np.float32), LARGE["signed"], np.zeros(0, np.float32)]
    pruned = [np.zeros((0, 3), bool), None, None]
    for done in (pruned, [None] * 3):
        keeps = keep_on_host(leaves, done, N // 2)
        assert [keep.shape for keep in keeps] == [leaf.shape for leaf in leaves]
        np.testing.assert_array_equal(keeps[1], expected(LARGE["signed"], N // 2, np.zeros(N, bool)))


def test_arrays_that_do_not_lie_row_by_row():
    rng = np.random.default_rng(3)
    scores = np.asfortranarray(rng.random((4, 6), np.float32))
    for pruned in (
        np.broadcast_to(rng.random((1, 6)) < 0.5, (4, 6)),
        np.asfortranarray(rng.random((4, 6)) < 0.3),
    ):
        (keep,) = keep_on_host([scores], [pruned], 14)
        np.testing.assert_array_equal(keep.ravel(), expected(scores.ravel(), 14, pruned.ravel()))
