"""`select` and `nm_keep` on sharded arrays: same masks, same placement, no communication but a few sums."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.selection import nm_keep, select
from jaxprune.selection.counts import as_count

SPECS = [P("a", "b"), P("a"), P(None, None, None, ("a", "b")), P(), P("b", None)]
COLLECTIVE = re.compile(r"= (.*?) (all-\w+|collective-\w+|reduce-scatter|ragged-all-to-all)(?:-start)?\(")


def leaves():
    rng = np.random.default_rng(0)
    shapes = [(16, 64), (24,), (3, 3, 8, 16), (7, 5), (6, 9)]
    return [np.round(rng.standard_normal(shape), 1).astype(np.float32) for shape in shapes]


def place(mesh):
    return [
        jax.device_put(leaf, NamedSharding(mesh, spec)) for leaf, spec in zip(leaves(), SPECS, strict=True)
    ]


def make_mesh(kind):
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))


def collectives(compiled):
    """(operation, most elements of one of its results) for each collective in the program."""
    found = []
    for results, operation in COLLECTIVE.findall(compiled.as_text()):
        sizes = [
            math.prod(map(int, filter(None, dims.split(","))))
            for dims in re.findall(r"\[([\d,]*)\]", results)
        ]
        found.append((operation, max(sizes)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("jitted", [False, True])
def test_same_masks_in_the_same_place(kind, jitted):
    reference = {k: select(leaves(), k) for k in (1, 700, 1500)}
    mesh = make_mesh(kind)
    with jax.set_mesh(mesh):
        scores = place(mesh)
        pruned = [score < -1.5 for score in scores]
        run = jax.jit(select) if jitted else select
        for k, wanted in reference.items():
            # The lowest scores in any case, so these change nothing beyond their own number.
            done = pruned if k > 700 else None
            for keep, score, mask in zip(run(scores, k, pruned=done), scores, wanted, strict=True):
                np.testing.assert_array_equal(keep, mask)
                assert keep.sharding.is_equivalent_to(score.sharding, keep.ndim)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_program_sends_nothing_but_all_reduces_of_counts(kind):
    mesh = make_mesh(kind)
    with jax.set_mesh(mesh):
        scores = place(mesh)
        pruned = [score < -1.5 for score in scores]
        run = jax.jit(lambda scores, k, pruned: select(scores, k, pruned=pruned))
        compiled = run.lower(scores, as_count(700), pruned).compile()
    found = collectives(compiled)
    assert found, "the program of sharded scores has collectives: the pattern above must find them"
    assert set(found) == {("all-reduce", 1)}
    # One a pass for each set of mesh axes in use, in either search: the sums of a pass travel together.
    assert len(found) <= 4 + len(SPECS)


@pytest.mark.slow
def test_uneven_shards():
    mesh = make_mesh(AxisType.Auto)
    uneven = [P("a", "b"), P("b"), P(None, "b", None, "a"), P("a", "b"), P("a", "b")]
    shardings = [NamedSharding(mesh, spec) for spec in uneven]

    def inside(scores, k):
        scores = [
            jax.lax.with_sharding_constraint(s, sharding)
            for s, sharding in zip(scores, shardings, strict=True)
        ]
        return select(scores, k)

    for k in (3, 700, 1500):
        for keep, mask in zip(jax.jit(inside)(leaves(), jnp.int32(k)), select(leaves(), k), strict=True):
            np.testing.assert_array_equal(keep, mask)
    compiled = jax.jit(inside).lower(leaves(), jnp.int32(3)).compile()
    assert ("all-reduce", 1) in collectives(compiled)


@pytest.mark.slow
def test_vmapped_on_sharded_replicates():
    mesh = make_mesh(AxisType.Auto)
    stacked = np.random.default_rng(1).standard_normal((4, 8, 6)).astype(np.float32)
    scores = jax.device_put(stacked, NamedSharding(mesh, P("a", "b")))
    (keeps,) = jax.jit(jax.vmap(lambda s, k: select([s], k)))(scores, jnp.array([1, 20, 30, 48]))
    for row, keep, k in zip(stacked, keeps, (1, 20, 30, 48), strict=True):
        np.testing.assert_array_equal(keep, select([row], k)[0])


@pytest.mark.slow
def test_under_shard_map_each_shard_selects_its_own():
    mesh = make_mesh(AxisType.Auto)
    scores = jax.device_put(leaves()[0], NamedSharding(mesh, P("a", "b")))
    spec = P("a", "b")
    run = jax.shard_map(
        lambda s: select([s], 50)[0], mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    keep = np.asarray(jax.jit(run)(scores))
    for i in range(4):
        for j in range(2):
            part = np.s_[4 * i : 4 * i + 4, 32 * j : 32 * j + 32]
            np.testing.assert_array_equal(keep[part], select([leaves()[0][part]], 50)[0])


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("leaf", "axis"), [(0, 0), (0, 1), (2, 2)])
def test_nm_stays_where_it_is(kind, leaf, axis):
    reference = nm_keep(jnp.asarray(leaves()[leaf]), 2, 4, axis)
    mesh = make_mesh(kind)
    with jax.set_mesh(mesh):
        score = place(mesh)[leaf]
        compiled = jax.jit(lambda score: nm_keep(score, 2, 4, axis)).lower(score).compile()
        keep = compiled(score)
        assert collectives(compiled) == []
        assert keep.sharding.is_equivalent_to(score.sharding, keep.ndim)
        np.testing.assert_array_equal(keep, reference)


@pytest.mark.slow
def test_nm_groups_across_shards():
    reference = nm_keep(jnp.asarray(leaves()[1]), 2, 4, 0)
    auto = place(make_mesh(AxisType.Auto))[1]
    np.testing.assert_array_equal(nm_keep(auto, 2, 4, 0), reference)
    mesh = make_mesh(AxisType.Explicit)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="m=4 and shards of length 6"):
        nm_keep(place(mesh)[1], 2, 4, 0)
