"""Scores at the ends of float32: inf means keep, and neither denormals nor large numbers change an order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.float_range import exponent_of, scaled, unscaled

STRUCTURES = [jp.Unstructured(), jp.Channels(), jp.Block((2, 1)), jp.Block((3, 1)), jp.NM(1, 2)]


@pytest.mark.slow
def test_scaling_by_powers_of_two_is_exact_from_the_smallest_denormal_to_the_largest_number():
    exponents = np.arange(-149, 128)
    x = np.ldexp(np.float32(1), exponents).astype(np.float32)
    assert exponent_of(jnp.asarray(x)).tolist() == exponents.tolist()
    mixed = np.concatenate([x, -x, np.float32([3e-45, 1.5, -7e-46, 3.4e38, 0])])
    e = exponent_of(jnp.asarray(mixed))
    near_one = np.asarray(scaled(jnp.asarray(mixed), e))
    assert (np.abs(near_one[mixed != 0]) >= 1).all()
    assert (np.abs(near_one) < 2).all()
    assert (
        np.asarray(unscaled(jnp.asarray(near_one), e)).view(np.int32).tolist()
        == mixed.view(np.int32).tolist()
    )


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2.0**-146, 2.0**120])
@pytest.mark.parametrize("structure", [*STRUCTURES[1:], jp.Layers()], ids=str)
def test_masks_do_not_depend_on_the_size_of_the_scores(structure, factor):
    small = np.random.default_rng(0).permutation(24).reshape(4, 6).astype(np.float32) + 1
    scores = {"a": small, "b": small[::-1] * 3 + 1}
    large = {name: jnp.asarray(x * np.float32(factor)) for name, x in scores.items()}
    scores = {name: jnp.asarray(x) for name, x in scores.items()}
    for minimum in (0, 1):
        if isinstance(structure, jp.Layers) and minimum:
            continue
        want = jp.make_masks(scores, 0.5, structure=structure, minimum=minimum)
        got = jp.make_masks(large, 0.5, structure=structure, minimum=minimum)
        for name, mask in want.items():
            np.testing.assert_array_equal(got[name], mask)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("minimum", [0, 1])
def test_inf_means_keep_in_every_structure_eagerly_and_under_jit(structure, minimum):
    scores = {"w": jnp.array([[0.1, 1.0, 2.0, jnp.inf]] * 2), "v": jnp.array([[jnp.inf, 1.5, 1.5, 9.0]] * 2)}
    if isinstance(structure, jp.NM):
        structure = jp.NM(2, 4, axis=-1)
    for make in (jp.make_masks, jax.jit(jp.make_masks, static_argnames=("sparsity", "structure", "minimum"))):
        masks = make(scores, sparsity=0.5, structure=structure, minimum=minimum)
        assert jnp.broadcast_to(masks["w"], (2, 4)).astype(int).tolist() == [[0, 0, 1, 1]] * 2
        assert jnp.broadcast_to(masks["v"], (2, 4)).astype(int).tolist() == [[1, 0, 0, 1]] * 2


@pytest.mark.slow
def test_whole_layers_with_an_inf_stay():
    scores = {
        "a": jnp.full((2, 2), jnp.inf),
        "b": jnp.ones((2, 2)),
        "c": jnp.zeros((2, 2)).at[0, 0].set(jnp.inf),
    }
    masks = jp.make_masks(scores, 0.3, structure=jp.Layers())
    assert [bool(m.all()) for m in jax.tree.leaves(masks)] == [True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES[1:3], ids=str)
def test_a_unit_with_nan_is_pruned_first_under_jit_and_one_with_minus_inf_next(structure):
    w = jnp.ones((2, 4)).at[0, 2].set(jnp.nan).at[0, 1].set(-jnp.inf).at[1, 2].set(jnp.inf)
    prune = jax.jit(jp.make_masks, static_argnames=("sparsity", "structure"))
    masks = [prune({"w": w}, sparsity=share, structure=structure)["w"] for share in (0.25, 0.5)]
    kept = [jnp.broadcast_to(mask, (2, 4))[0].astype(int).tolist() for mask in masks]
    assert kept == [[1, 1, 0, 1], [1, 0, 0, 1]]


def test_more_infs_than_may_stay_go_by_index():
    masks = jp.make_masks({"w": jnp.array([[jnp.inf, 2.0, jnp.inf, jnp.inf]])}, 0.5, minimum=1)
    assert masks["w"].astype(int).tolist() == [[0, 0, 1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-40, 1e-25, 1.0, 1e37])
@pytest.mark.parametrize("structure", [jp.Channels(), jp.Block((2, 2))], ids=str)
def test_l2_norms_are_those_of_float64_at_any_size(structure, factor):
    w = (np.random.default_rng(1).normal(size=(4, 6)) * factor).astype(np.float32)
    w[:, 0] *= np.float32(1e-4)
    found = np.asarray(jp.scores.l2_norm({"w": jnp.asarray(w)}, structure)["w"], np.float64)
    blocks = {jp.Channels(): (4, 1), jp.Block((2, 2)): (2, 2), jp.Layers(): (4, 6)}[structure]
    squares = np.square(w.astype(np.float64)).reshape(4 // blocks[0], blocks[0], 6 // blocks[1], blocks[1])
    want = np.sqrt(squares.sum((1, 3))).repeat(blocks[0], 0).repeat(blocks[1], 1)
    np.testing.assert_allclose(found, want, rtol=3e-5 if factor == 1e-40 else 1e-6, atol=3e-45)


@pytest.mark.slow
@pytest.mark.parametrize("score", [jp.scores.fpgm, jp.scores.lamp, jp.scores.normalize])
@pytest.mark.parametrize("factor", [2.0**-140, 2.0**120])
def test_scores_of_layers_keep_their_order_at_any_size(score, factor):
    w = np.random.default_rng(2).integers(1, 64, (4, 6)).astype(np.float32)
    small, other = (score({"w": jnp.asarray(x)})["w"] for x in (w, w * np.float32(factor)))
    assert (
        np.argsort(np.ravel(small), kind="stable").tolist()
        == np.argsort(np.ravel(other), kind="stable").tolist()
    )
    assert bool(jnp.isfinite(other).all())


@pytest.mark.slow
def test_normalize_and_owl_count_what_is_finite():
    score = jp.scores.normalize({"w": jnp.array([1.0, 3.0, jnp.inf])})["w"]
    assert score.tolist() == [0.5, 1.5, float("inf")]
    kept = {"a": jnp.ones((4, 5)).at[0, 0].set(jnp.inf), "b": jnp.ones((4, 5))}
    spiky = {"a": jnp.ones((4, 5)).at[0, 0].set(1e6), "b": jnp.ones((4, 5))}
    assert jp.allocate.owl(kept, 0.5) == jp.allocate.owl(spiky, 0.5)


@pytest.mark.slow
def test_surgery_and_group_lasso_take_weights_of_any_size():
    def penalty(factor):
        return float(jp.sparse_training.group_penalty({"w": jnp.array([[3.0, 0.0], [4.0, 0.0]]) * factor}))

    assert penalty(1e25) == pytest.approx(penalty(1.0) * 1e25)
    gradient = jax.grad(lambda w: jp.sparse_training.group_penalty({"w": w}))(
        jnp.array([[3e25, 0.0], [4e25, 0.0]])
    )
    np.testing.assert_allclose(gradient, np.sqrt(2) * np.array([[0.6, 0], [0.8, 0]]), rtol=1e-6)

    params = {"up": jnp.array([[3.0, 0.5]]) * 1e25, "down": jnp.array([[4.0], [1.0]]) * 1e25}
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
    np.testing.assert_allclose(jp.surgery.l2_scores(groups, params)["down[0]"], [5e25, np.sqrt(1.25) * 1e25])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_group_penalty_has_its_gradient_in_every_dtype(dtype):
    w = jnp.array([[3.0, 0.5], [4.0, 0.0]], dtype)
    gradient = jax.grad(jp.sparse_training.group_penalty)({"w": w})["w"]
    # A column's norm times the root of its size: w / norm * sqrt(2).
    np.testing.assert_allclose(
        np.asarray(gradient, np.float32), 2**0.5 * np.array([[0.6, 1.0], [0.8, 0.0]]), rtol=0.01
    )
