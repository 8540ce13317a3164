"""`select` and `nm_keep` against NumPy's stable sort."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.selection import Count, count_to_prune, in_place, nm_keep, select, smallest
from jaxprune.selection.blocks import keep_in_blocks
from jaxprune.selection.in_place import keep_in_place
from jaxprune.selection.smallest import _Selection

SHAPES = ((7, 5), (), (0, 4), (23,), (2, 3, 4), (1,))
SIZE = 84
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def expected(scores, k, pruned=None):
    """Masks by a stable sort on (pruned, NaN, value): an independent definition of the promise."""
    flat = np.concatenate([np.asarray(score).astype(np.float64).ravel() for score in scores])
    before = np.zeros(flat.size, bool)
    if pruned is not None:
        pairs = zip(scores, pruned, strict=True)
        before = np.concatenate(
            [np.full(s.shape, False).ravel() if p is None else p.ravel() for s, p in pairs]
        )
    nan = np.isnan(flat)
    order = np.lexsort((np.where(before | nan, 0, flat), np.where(before, 0, np.where(nan, 1, 2))))
    gone = before.copy()
    gone[order[:k]] = True
    cuts = np.cumsum([score.size for score in scores])[:-1]
    return [~part.reshape(score.shape) for part, score in zip(np.split(gone, cuts), scores, strict=True)]


def split(flat, dtypes=(np.float32,)):
    cuts = np.cumsum([np.prod(shape, dtype=int) for shape in SHAPES])[:-1]
    parts = zip(np.split(flat, cuts), SHAPES, strict=True)
    return [part.reshape(shape).astype(dtypes[i % len(dtypes)]) for i, (part, shape) in enumerate(parts)]


def assert_same(keeps, reference):
    for keep, wanted in zip(keeps, reference, strict=True):
        assert keep.dtype == bool
        np.testing.assert_array_equal(np.asarray(keep), wanted)


def distributions():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(SIZE)
    return {
        "smooth": np.abs(normal),
        "signed": normal,
        "heavy ties": np.round(normal),
        "mostly zeros": np.where(rng.random(SIZE) < 0.9, 0, normal),
        "zeros of both signs": np.where(rng.random(SIZE) < 0.5, -0.0, 0.0),
        "denormals": rng.integers(-20, 20, SIZE) * 2.0**-149,
        "float16 denormals": rng.integers(-20, 20, SIZE) * 2.0**-24,
        "25 decades": 10.0 ** rng.uniform(-20, 5, SIZE),
        "constant": np.full(SIZE, 0.3),
        "infinities": rng.choice([-np.inf, np.inf, 1.0], SIZE),
        "with NaN": rng.choice([np.nan, -np.nan, -np.inf, 0.5, 1.0], SIZE),
        "all NaN": np.full(SIZE, np.nan),
        "largest": rng.choice([-3.4e38, 3.4e38, np.inf], SIZE),
    }


@pytest.mark.usefixtures("engine")
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("name", distributions())
@pytest.mark.parametrize(
    "dtypes", [("float32",), ("bfloat16",), ("float16",), ("float32", "float16", "bfloat16")]
)
def test_keeps_what_a_stable_sort_keeps(name, dtypes):
    scores = split(distributions()[name], [DTYPES[dtype] for dtype in dtypes])
    pruned = [
        np.random.default_rng(i).random(shape) < 0.3 if i % 2 else None for i, shape in enumerate(SHAPES)
    ]
    for k in (0, 1, 2, 20, 41, 42, 60, SIZE - 1, SIZE):
        assert_same(select(scores, k), expected(scores, k))
        assert_same(select(scores, k, pruned=pruned), expected(scores, k, pruned))


VALUES = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, -1e-45]),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(
    flat=st.lists(VALUES, min_size=SIZE, max_size=SIZE),
    k=st.integers(0, SIZE),
    seed=st.none() | st.integers(0, 2**31),
    rate=st.floats(0, 1),
)
def test_keeps_what_a_stable_sort_keeps_of_any_floats(engines, flat, k, seed, rate):
    scores = split(np.array(flat, np.float32))
    pruned = None if seed is None else [np.random.default_rng(seed).random(shape) < rate for shape in SHAPES]
    wanted = expected(scores, k, pruned)
    engines(lambda: assert_same(select(scores, k, pruned=pruned), wanted))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_scores(dtype):
    rng = np.random.default_rng(1)
    scores = [rng.standard_normal((300, 100)).astype(DTYPES[dtype]), rng.random(40_001).astype(DTYPES[dtype])]
    for k in (1, 777, 35_000, 70_000):
        assert_same(select(scores, k), expected(scores, k))


@pytest.mark.slow
def test_jit_with_a_traced_count_does_not_recompile():
    scores = split(distributions()["signed"])
    traces = []
    run = jax.jit(lambda scores, k: (traces.append(k), select(scores, k))[1])
    for k in (3, 40, -2, SIZE + 5):
        reference = expected(scores, min(max(k, 0), SIZE))
        assert_same(run(scores, jnp.int32(k)), reference)
        assert_same(run(scores, jnp.int32(k)), reference)
    assert len(traces) == 1


@pytest.mark.usefixtures("compiled")
def test_an_eager_call_with_another_count_does_not_recompile(monkeypatch):
    scores = [np.random.default_rng(3).random((6, 13)).astype(np.float32)]
    calls = []
    monkeypatch.setattr(smallest, "keep_in_blocks", lambda *a: (calls.append(a), keep_in_blocks(*a))[1])
    for k in (3, 50, 3):
        assert_same(select(scores, k), expected(scores, k))
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("few", "large"), [(0, 10), (0, 100), (8, 0), (8, 24)])
def test_leaves_in_place_and_copied_ones_are_searched_alike(monkeypatch, few, large):
    """All in place, runs of small leaves between large ones, all copied: with and without counts a leaf."""
    monkeypatch.setattr(smallest, "_LARGE", large)
    monkeypatch.setattr(smallest, "_FEW", few)

    @functools.partial(jax.jit, static_argnames="each")
    def run(scores, pruned, k, each):
        selection = _Selection(tuple(p is not None for p in pruned), each)
        return selection(*k, *scores, *(p for p in pruned if p is not None), partitioned=False)

    masks = [np.random.default_rng(i).random(s) < 0.3 if i % 2 else None for i, s in enumerate(SHAPES)]
    for dtypes, pruned in ((("float32",), masks), (("float32", "bfloat16"), [None] * len(SHAPES))):
        for name in ("signed", "with NaN", "mostly zeros", "constant"):
            scores = split(distributions()[name], [DTYPES[dtype] for dtype in dtypes])
            for k in (0, 1, 30, 42, SIZE):
                one = Count(*(np.asarray(part)[None] for part in Count.of(k)))
                assert_same(run(scores, pruned, one, False), expected(scores, k, pruned))
            shares = [0.4, 1, 0.5, 0.25, 0.9, 0]
            each = [round(share * s.size) for share, s in zip(shares, scores, strict=True)]
            counts = Count(np.zeros(len(each), np.uint32), np.array(each, np.uint32))
            found = run(scores, pruned, counts, True)
            for keep, s, k, p in zip(found, scores, each, pruned, strict=True):
                assert_same([keep], expected([s], k, None if p is None else [p]))


@pytest.mark.usefixtures("engine")
def test_counts_a_leaf_are_what_a_stable_sort_of_each_leaf_keeps():
    rng = np.random.default_rng(5)
    scores = [rng.standard_normal(s).astype(np.float32) for s in ((40, 60), (3000,), (1,), (0, 2), (5, 5))]
    scores[1][:2000] = 0.25
    for each in ([0, 0, 0, 0, 0], [2400, 3000, 1, 0, 25], [7, 1234, 0, 0, 3]):
        found = select(scores, each)
        traced = jax.jit(lambda scores, each: select(scores, list(each)))(scores, jnp.asarray(each))
        for keep, other, s, k in zip(found, traced, scores, each, strict=True):
            assert_same([keep], expected([s], k))
            assert_same([other], expected([s], k))


@pytest.mark.slow
def test_vmap_of_counts_a_leaf():
    rng = np.random.default_rng(6)
    scores = [jnp.asarray(rng.standard_normal((3, *s)), jnp.float32) for s in ((4, 9), (50,))]
    counts = jnp.asarray([[3, 10], [36, 0], [20, 50]])
    for axes in ((0, 0), (None, 0), (0, None)):
        given = scores if axes[0] == 0 else [s[0] for s in scores]
        found = jax.vmap(lambda s, k: select(s, list(k)), in_axes=axes)(
            given, counts if axes[1] == 0 else counts[1]
        )
        for i in range(3):
            for j in range(2):
                s = scores[j][i if axes[0] == 0 else 0]
                assert_same(
                    [found[j][i]], expected([np.asarray(s)], int(counts[i if axes[1] == 0 else 1, j]))
                )


@pytest.mark.slow
def test_no_gradient_goes_through_it():
    def loss(x):
        (keep,) = select([x], 2)
        return jnp.sum(jnp.where(keep, x, 0) ** 2)

    x = jnp.array([3.0, -1.0, 2.0, 5.0])
    for f in (jax.grad(loss), jax.jit(jax.grad(loss)), jax.jit(jax.grad(jax.checkpoint(loss)))):
        np.testing.assert_array_equal(f(x), [6.0, 0.0, 0.0, 10.0])
    tangent = jax.jit(lambda x: jax.jvp(loss, (x,), (jnp.ones(4),))[1])(x)
    assert float(tangent) == 16.0


@pytest.mark.usefixtures("engine")
def test_count_and_unsigned_counts():
    scores = split(distributions()["signed"])
    for k in (jnp.uint32(17), Count.of(17), np.int64(17), jnp.int8(17)):
        assert_same(select(scores, k), expected(scores, 17))
    everything = expected(scores, SIZE)
    assert_same(select(scores, Count.of(2**32 + 1)), everything)
    assert_same(select(scores, jnp.uint32(2**32 - 1)), everything)


@pytest.mark.slow
def test_vmap_over_scores_and_counts():
    names = ("signed", "heavy ties", "mostly zeros", "with NaN")
    rows = [split(distributions()[name]) for name in names]
    stacked = [np.stack(leaves) for leaves in zip(*rows, strict=True)]
    ks = (5, 40, 70, 0)
    both = jax.jit(jax.vmap(select))(stacked, jnp.array(ks))
    for i, (row, k) in enumerate(zip(rows, ks, strict=True)):
        assert_same([leaf[i] for leaf in both], expected(row, k))
    counts_only = jax.vmap(lambda k: select(rows[1], k))(jnp.array(ks))
    for i, k in enumerate(ks):
        assert_same([leaf[i] for leaf in counts_only], expected(rows[1], k))


@pytest.mark.slow
def test_scan_over_rising_sparsity_keeps_what_was_pruned():
    scores = split(distributions()["signed"])

    def step(masks, sparsity):
        k = count_to_prune(sparsity, SIZE)
        masks = select(scores, k, pruned=[~mask for mask in masks])
        return masks, sum(jnp.sum(~mask) for mask in masks)

    start = [jnp.ones(shape, bool) for shape in SHAPES]
    masks, gone = jax.jit(lambda: jax.lax.scan(step, start, jnp.array([0.25, 0.5, 0.8, 0.5])))()
    np.testing.assert_array_equal(gone, [21, 42, 67, 67])
    assert_same(masks, expected(scores, 67))


@pytest.mark.usefixtures("engine")
def test_strict_promotion_nan_checks_and_64_bit_mode():
    scores = split(distributions()["heavy ties"])
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        assert_same(jax.jit(select)(scores, jnp.int32(33)), expected(scores, 33))
    with jax.enable_x64(True):
        assert_same(select(scores, jnp.asarray(33)), expected(scores, 33))


@pytest.mark.usefixtures("engine")
def test_no_leaves_and_empty_leaves():
    assert select([], 0) == []
    assert [keep.shape for keep in select([np.zeros((0, 3), np.float32)], 0)] == [(0, 3)]
    assert_same(select([np.float32(2.0)], 1), [np.array(False)])


@pytest.mark.slow
def test_indices_of_several_digits(monkeypatch):
    """The way of leaves with more than 2^31 entries, taken with a smaller base."""
    digits = in_place._digits
    monkeypatch.setattr(in_place, "_digits", lambda shape: digits(shape, base=6))
    run = jax.jit(lambda scores, k: keep_in_place(scores, [None] * len(scores), k, partitioned=False))
    scores = [jnp.asarray(score) for score in split(distributions()["mostly zeros"])]
    for k in (1, 17, 36, 40, 59, 61, 70, 83):
        assert_same(run(scores, Count.of(k)), expected(scores, k))


@pytest.mark.slow
def test_needs_no_memory_beside_the_masks():
    leaf = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    scores, k = [leaf, leaf], Count.of(0)
    run = jax.jit(lambda scores, k: keep_in_place(scores, [None, None], k, partitioned=False))
    compiled = run.lower(scores, k).compile()
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes < 1.01 * 2e6
    assert memory.temp_size_in_bytes < 0.01 * 8e6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([np.ones(3, np.float32)], 4), ValueError, "at most the number of scores, 3, got 4"),
        (([np.ones(3, np.float32)], -1), ValueError, "at least 0, got -1"),
        (([np.ones(3, np.float32)], 0.5), TypeError, "`count_to_prune` turns a sparsity into a count"),
        (([np.ones(3, np.int32)], 1), TypeError, "got int32"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        select(*arguments)


def test_refuses_pruned_that_does_not_match():
    with pytest.raises(ValueError, match="an entry for each of the 1 leaves, got 2"):
        select([np.ones(3, np.float32)], 1, pruned=[None, None])
    with pytest.raises(ValueError, match=r"shape \(3,\), got bool\(4,\)"):
        select([np.ones(3, np.float32)], 1, pruned=[np.ones(4, bool)])


@pytest.mark.slow_beyond(4)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (2, 4), (3, 4), (4, 8), (2, 3)])
def test_nm_keeps_what_a_stable_sort_of_groups_keeps(n, m, axis):
    shape = [3, 2, 5]
    shape[axis] = 4 * m
    rng = np.random.default_rng(n + m)
    scores = np.where(rng.random(shape) < 0.1, np.nan, np.round(2 * rng.standard_normal(shape))).astype(
        np.float32
    )
    pruned = rng.random(shape) < 0.2
    for done in (None, pruned):
        groups = np.moveaxis(scores, axis, -1).reshape(-1, m)
        gone = np.zeros(shape, bool) if done is None else done
        gone = np.moveaxis(gone, axis, -1).reshape(-1, m)
        wanted = np.array([expected([g], m - n, [p])[0] for g, p in zip(groups, gone, strict=True)])
        keep = jax.jit(nm_keep, static_argnums=(1, 2, 3))(scores, n, m, axis, done)
        np.testing.assert_array_equal(np.moveaxis(np.asarray(keep), axis, -1).reshape(-1, m), wanted)
        np.testing.assert_array_equal(nm_keep(scores, n, m, axis, done), keep)


def test_nm_refuses():
    with pytest.raises(ValueError, match="m=4 and shape"):
        nm_keep(jnp.ones((6, 2)), 2, 4, 0)
    with pytest.raises(ValueError, match="n=5 and m=4"):
        nm_keep(jnp.ones((8, 2)), 5, 4, 0)


def test_nm_makes_no_copy_and_no_sort():
    compiled = jax.jit(lambda scores: nm_keep(scores, 2, 4, 0)).lower(jnp.zeros((1024, 512))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * 4 * 1024 * 512
    assert " sort(" not in compiled.as_text()
