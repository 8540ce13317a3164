"""Structures: which units there are, and that the right ones go."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp


@pytest.mark.usefixtures("engine")
def test_nm_runs_along_the_input_axis_of_dense_and_convolution_kernels():
    for shape, axis in (((8, 3), 0), ((3, 3, 8, 5), 2), ((3, 8, 5), 1)):
        scores = jax.random.uniform(jax.random.key(5), shape)
        mask = np.moveaxis(
            np.asarray(jp.make_masks({"kernel": scores}, 0.5, structure=jp.NM(2, 4))["kernel"]), axis, -1
        )
        assert (mask.reshape(-1, 4).sum(1) == 2).all()
        groups = np.moveaxis(np.asarray(scores), axis, -1).reshape(-1, 4)
        best = np.argsort(groups, axis=1)[:, 2:]
        assert np.take_along_axis(mask.reshape(-1, 4), best, 1).all(), (
            "the two largest of each group are kept"
        )


def test_nm_of_flax_attention_groups_the_model_axis_of_projections_and_head_dim_of_the_output():
    nm = jp.NM(2, 4)
    assert nm.group_axis("attention/query/kernel", (16, 3, 5)) == 0
    assert nm.group_axis("layers/attention/value/kernel", (12, 16, 3, 5)) == 1, "scanned layers"
    assert nm.group_axis("attention/out/kernel", (3, 8, 16)) == 1
    assert jp.NM(2, 4, axis=-1).group_axis("torch/weight", (3, 8)) == 1
    assert jp.NM(2, 4, axis=lambda path, shape: 0 if "first" in path else 1).group_axis("first", (4, 4)) == 0


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8), (1, 2), (7, 8)])
def test_nm_keeps_n_of_every_m_with_ties_and_a_prior(n, m):
    scores = jnp.round(jax.random.uniform(jax.random.key(6), (2 * m, 6)) * 3)
    prior = {"w": jax.random.uniform(jax.random.key(7), (2 * m, 6)) > 0.3}
    structure = jp.NM(n, m)
    mask = jp.make_masks({"w": scores}, structure.sparsity, structure=structure)["w"]
    assert (np.asarray(mask).T.reshape(-1, m).sum(1) == n).all()
    after = jp.make_masks({"w": scores}, structure.sparsity, structure=structure, prior=prior)["w"]
    assert not bool((after & ~prior["w"]).any())
    assert (np.asarray(after).T.reshape(-1, m).sum(1) <= n).all()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("scope", ["global", "local"])
def test_nm_below_its_sparsity_prunes_the_lowest_of_its_own_candidates(scope):
    scores = {"w": jax.random.uniform(jax.random.key(8), (8, 6))}
    full = jp.make_masks(scores, 0.5, structure=jp.NM(2, 4))["w"]
    part = jax.jit(lambda s: jp.make_masks(scores, s, structure=jp.NM(2, 4), scope=scope))(0.25)["w"]
    assert int((~part).sum()) == 12 and bool((part | ~full).all())
    dropped, candidates = np.sort(np.asarray(scores["w"])[~part]), np.sort(np.asarray(scores["w"])[~full])
    np.testing.assert_array_equal(dropped, candidates[:12])
    most = jax.jit(lambda s: jp.make_masks(scores, s, structure=jp.NM(2, 4), scope=scope))(0.9)["w"]
    np.testing.assert_array_equal(most, full)


@pytest.mark.usefixtures("engine")
def test_channels_mask_is_broadcastable_and_along_any_axis():
    scores = {"w": jnp.arange(1.0, 25).reshape(2, 3, 4)}
    for axis, shape in ((-1, (1, 1, 4)), (0, (2, 1, 1)), (1, (1, 3, 1))):
        mask = jp.make_masks(scores, 0.5, structure=jp.Channels(axis))["w"]
        assert mask.shape == shape
        assert int((~mask).sum()) == round(0.5 * max(shape))
    one_d = {"b": jnp.arange(4.0)}
    where = jp.prunable(one_d, include="b")
    assert jp.make_masks(one_d, 0.5, structure=jp.Channels(), where=where)["b"].tolist() == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.usefixtures("engine")
def test_channels_against_a_brute_force_over_subsets():
    w = jax.random.normal(jax.random.key(9), (5, 6))
    mask = np.asarray(
        jp.make_masks(jp.scores.l1_norm({"w": w}, jp.Channels()), 0.5, structure=jp.Channels())["w"]
    )[0]
    best = min(itertools.combinations(range(6), 3), key=lambda drop: np.abs(np.asarray(w))[:, drop].sum())
    assert tuple(np.flatnonzero(~mask)) == best


@pytest.mark.usefixtures("engine")
def test_blocks_with_edges_that_do_not_divide():
    scores = np.ones((5, 7), np.float32)
    scores[4:, 6:] = 0.1  # a 1 x 1 corner block
    scores[0:2, 0:3] = 0.5
    masks = jp.make_masks({"w": jnp.asarray(scores)}, 2 / 9, structure=jp.Block((2, 3)))["w"]
    want = np.ones((5, 7), bool)
    want[4:, 6:] = False
    want[0:2, 0:3] = False
    np.testing.assert_array_equal(masks, want)


@pytest.mark.usefixtures("engine")
def test_blocks_leave_leading_axes_ungrouped():
    mask = jp.make_masks(
        {"w": jax.random.uniform(jax.random.key(1), (3, 4, 4))}, 0.5, structure=jp.Block((2, 2))
    )["w"]
    per_block = np.asarray(mask).reshape(3, 2, 2, 2, 2).mean((2, 4))
    assert set(per_block.ravel()) == {0.0, 1.0} and per_block.sum() == 6


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sparsity=st.floats(0, 0.99),
    seed=st.integers(0, 9),
)
def test_blocks_equal_a_loop_over_blocks(engines, shape, block, sparsity, seed):
    w = np.asarray(np.random.default_rng(seed).integers(0, 5, shape), np.float32)
    starts = list(itertools.product(range(0, shape[0], block[0]), range(0, shape[1], block[1])))
    means = np.array(
        [w[i : i + block[0], j : j + block[1]].astype(np.float64).mean() for i, j in starts], np.float32
    )
    want = np.ones(shape, bool)
    for b in np.argsort(means, kind="stable")[: round(sparsity * len(starts))]:
        i, j = starts[b]
        want[i : i + block[0], j : j + block[1]] = False

    def check():
        got = np.asarray(jp.make_masks({"w": jnp.asarray(w)}, sparsity, structure=jp.Block(block))["w"])
        if len(set(means)) == len(means) or sparsity == 0:  # rounding of a mean may reorder equal ones
            np.testing.assert_array_equal(got, want)
        assert got.shape == shape

    engines(check)


@pytest.mark.usefixtures("engine")
def test_layers_mask_shape_and_choice():
    scores = {"a": jnp.full((2, 2), 3.0), "c": jnp.full((4, 4), 1.0), "d": jnp.full((2, 8), 2.0)}
    masks = jp.make_masks(scores, 1 / 3, structure=jp.Layers())
    assert [m.shape for m in jax.tree.leaves(masks)] == [(1, 1)] * 3
    assert [bool(m.all()) for m in jax.tree.leaves(masks)] == [True, False, True]
    assert jp.sparsity(scores, masks) == 16 / 36


@pytest.mark.usefixtures("engine")
def test_constant_unit_scores_pass_through_the_mean_unchanged():
    values = np.float32(0.1) * (1 + np.arange(64) * np.float32(2**-23))  # neighbours in float32
    scores = {"w": jnp.broadcast_to(jnp.asarray(values)[None], (999, 64))}
    mask = np.asarray(jp.make_masks(scores, 0.5, structure=jp.Channels())["w"])[0]
    np.testing.assert_array_equal(mask, np.arange(64) >= 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "structure",
    [
        jp.Unstructured(),
        jp.NM(2, 4),
        jp.NM(2, 4, axis=1),
        jp.Channels(),
        jp.Channels(0),
        jp.Block((2, 4)),
        jp.Layers(),
    ],
    ids=str,
)
@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_scores_give_the_same_masks_without_gathering_them(structure, explicit):
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    specs = {"a": jax.P("x", "y"), "c": jax.P(None, "x")}
    scores = {
        "a": jax.random.normal(jax.random.key(0), (32, 64)),
        "c": jnp.round(jax.random.normal(jax.random.key(1), (32, 64)) * 3),
    }
    alone = jp.make_masks(scores, 0.5, structure=structure)
    with jax.set_mesh(mesh):
        sharded = {k: jax.device_put(v, jax.NamedSharding(mesh, specs[k])) for k, v in scores.items()}
        make = jax.jit(lambda s: jp.make_masks(s, 0.5, structure=structure))
        masks = make(sharded)
        program = make.lower(sharded).compile().as_text()
        gathered = [line for line in program.splitlines() if "all-gather(" in line or "all-to-all(" in line]
        assert not gathered, gathered
    jax.tree.map(np.testing.assert_array_equal, alone, masks)
