"""Counts beyond 2^31, and the number to prune, in exact arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.selection import Count, count_to_prune, counts
from jaxprune.selection.in_place import _digits, _index
from jaxprune.selection.search import count, search

WIDE = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(a=WIDE, b=WIDE)
def test_arithmetic_is_that_of_python_ints(a, b):
    a, b = min(a, b), max(a, b)
    wide_a, wide_b = Count.of(a), Count.of(b)
    assert int(counts.subtract(wide_b, wide_a)) == b - a
    assert int(counts.add(wide_a, Count.of(b - a))) == b
    assert bool(counts.less_equal(wide_a, wide_b))
    assert bool(counts.less_equal(wide_b, wide_a)) == (a == b)
    assert bool(counts.equal(wide_a, wide_b)) == (a == b)
    assert int(counts.minimum(wide_b, wide_a)) == a


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.integers(0, 2**60), min_size=5, max_size=5))
def test_total_is_exact(values):
    parts = counts.stack([Count.of(value) for value in values])
    assert int(counts.total(parts)) == sum(values)


def test_total_of_many_largest_parts_does_not_wrap():
    assert int(counts.total(counts.from_uint32(jnp.full(100_000, 2**32 - 1, jnp.uint32)))) == 100_000 * (
        2**32 - 1
    )


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("partitioned", [False, True])
@pytest.mark.parametrize("largest_sum", [1 << 32, 200, 40])
def test_count_by_parts(partitioned, largest_sum):
    """A small bound takes the way of arrays with more than 2^32 entries."""
    values = np.random.default_rng(0).random((11, 13, 7))
    predicates = [values < 0.2, values < 0.9, values < 2.0]
    found = count([jnp.asarray(p) for p in predicates], partitioned=partitioned, largest_sum=largest_sum)
    assert [int(Count(h, low)) for h, low in zip(found.high, found.low, strict=True)] == [
        p.sum() for p in predicates
    ]


def test_digits_number_every_entry_in_row_major_order():
    shape = (3, 4, 5, 2)
    digits = _digits(shape, base=11)
    assert digits == [[0], [1], [2, 3]]
    indices = [np.asarray(_index(shape, axes)).ravel() for axes in digits]
    order = np.lexsort(indices[::-1])
    np.testing.assert_array_equal(order, np.arange(120))
    assert _digits((70_000, 300_000)) == [[0], [1]]
    assert _digits((30_000, 300_000 // 5)) == [[0, 1]]


@pytest.mark.slow
def test_search_among_more_entries_than_2_to_the_32():
    """Ten billion entries, each value v < 1000 of part p held by ten million times p."""
    weights = [0, 3, 997]

    def below(probes):
        rows = []
        for weight in weights:
            total = Count(jnp.zeros(7, jnp.uint32), jnp.zeros(7, jnp.uint32))
            for bit in range(10):
                step = Count.of(weight * 10_000 << bit)
                has = ((jnp.minimum(probes, 1000) >> bit) & 1).astype(bool)
                total = counts.where(has, counts.add(total, step), total)
            rows.append(total)
        return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *rows)

    whole = counts.stack([Count.of(weight * 10_000 * 1000) for weight in weights])
    run = jax.jit(lambda k: search(below, 2**32 - 1, k, whole))
    for k in (0, 1, 4_999_999_999, 5_000_000_000, 9_999_999_999, 10_000_000_000):
        t, missing, tied = run(Count.of(k))
        assert 10_000_000 * min(int(t), 1000) + int(missing) == k
        if int(missing):
            assert [int(Count(h, low)) for h, low in zip(tied.high, tied.low, strict=True)] == [
                weight * 10_000 for weight in weights
            ]


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    sparsity=st.one_of(st.floats(0, 1, width=32), st.integers(0, 64).map(lambda i: i / 64)),
    n=st.integers(0, 2**20) | st.sampled_from([2**31 - 1, 2**31, 10**10 + 1, 2**53 + 1, 2**63 - 1]),
)
def test_traced_sparsity_rounds_half_to_even_exactly(sparsity, n):
    k = count_to_prune(jnp.float32(sparsity), n)
    assert isinstance(k, Count) == (n >= 2**31)
    assert int(k) == round(Fraction(sparsity) * n)


@pytest.mark.slow
def test_traced_sparsity_of_other_types():
    k = jax.jit(jax.vmap(lambda s: count_to_prune(s, 10_000_000_001)))(
        jnp.array([0.7, 0.5, 1.0], jnp.bfloat16)
    )
    expected = [round(Fraction(float(jnp.bfloat16(s))) * 10_000_000_001) for s in (0.7, 0.5, 1.0)]
    assert [int(Count(h, low)) for h, low in zip(k.high, k.low, strict=True)] == expected
    assert int(count_to_prune(jnp.float32(jnp.nan), 10)) == 0
    assert int(count_to_prune(jnp.float32(1.5), 10)) == 10
    with jax.enable_x64(True):
        assert int(count_to_prune(jnp.float64(0.1), 10**18)) == round(Fraction(0.1) * 10**18)


@pytest.mark.slow
def test_float32_would_have_lost_the_count():
    """At 1e8 weights a rank held in float32 is off; the count is not."""
    n = 100_000_001
    sparsity = np.float32(0.9)
    assert int(count_to_prune(jnp.asarray(sparsity), n)) == round(Fraction(float(sparsity)) * n)
    assert int(np.float32(sparsity * np.float32(n))) != round(Fraction(float(sparsity)) * n)


def test_python_sparsity():
    assert count_to_prune(0.5, 5) == 2 and count_to_prune(0.5, 7) == 4
    assert count_to_prune(1.0, 2**53) == 2**53
    assert count_to_prune(np.float32(0.25), 10) == 2
    with pytest.raises(ValueError, match=r"pass 0\.9, not 90"):
        count_to_prune(90, 100)
    with pytest.raises(ValueError, match="got nan"):
        count_to_prune(float("nan"), 100)
