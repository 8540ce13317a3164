"""Scores of units: worked by hand, and what may be given as a score."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import library_models
import numpy as np
import plain_models
import pytest
from plain_layers import data, weights

import jaxprune as jp
from jaxprune.surgery import (
    UnitScores,
    activation_scores,
    batch_norm_scores,
    fpgm_scores,
    l2_scores,
    plan_units,
    taylor_scores,
    unit_scores,
)


def test_l2_is_the_norm_of_the_unit_over_its_slices(hand):
    params, groups = hand
    np.testing.assert_allclose(l2_scores(groups, params)["b[0]"], [13.0, 5.0])


def test_taylor_sums_over_the_unit_before_it_squares(hand):
    params, groups = hand
    gradients = {
        "up": jnp.array([[1.0, 1.0], [-1.0, 0.5]]),
        "b": jnp.array([7.0, 1.0]),
        "down": jnp.array([[0.5], [-1.0]]),
    }
    # 3 - 4 + 0 + 6 = 5;  1 + 1 + 2 - 4 = 0
    np.testing.assert_allclose(taylor_scores(groups, params=params, gradients=gradients)["b[0]"], [25.0, 0.0])
    np.testing.assert_allclose(
        taylor_scores(groups, params=params, gradients={**gradients, "down": None})["b[0]"], [1.0, 16.0]
    )


def test_taylor_averages_the_scores_of_batches(hand):
    params, groups = hand

    def loss_fn(p, batch):  # the gradient of each parameter is the batch times its index from 1
        return batch * sum(jnp.sum(x * (1 + jnp.arange(x.size)).reshape(x.shape)) for x in jax.tree.leaves(p))

    batches = [jnp.float32(2.0), jnp.float32(-1.0)]
    gradients = [jax.grad(loss_fn)(params, batch) for batch in batches]
    each = [taylor_scores(groups, params=params, gradients=g)["b[0]"] for g in gradients]
    scores = taylor_scores(groups, loss_fn, params, iter(batches))
    np.testing.assert_allclose(scores["b[0]"], (each[0] + each[1]) / 2, rtol=1e-6)
    assert taylor_scores(groups, loss_fn=loss_fn, params=params, batches=batches) == scores
    with pytest.raises(ValueError, match="`batches` must have at least one batch"):
        taylor_scores(groups, loss_fn, params, [])
    with pytest.raises(ValueError, match="`loss_fn` must return one floating-point number"):
        taylor_scores(groups, lambda p, batch: p["up"], params, batches)
    for given in (
        {"params": params},
        {"params": params, "batches": batches},
        {"loss_fn": loss_fn, "params": params, "batches": batches, "gradients": gradients[0]},
    ):
        with pytest.raises(ValueError, match="needs `loss_fn` and `batches`, or `gradients`"):
            taylor_scores(groups, **given)


@pytest.mark.slow
def test_taylor_is_the_first_order_change_of_the_loss_when_a_unit_vanishes():
    fn, params, inputs = plain_models.mlp()
    groups = jp.find_groups(fn, params, *inputs)

    def loss(p):
        return jnp.sum(jnp.sin(fn(p, *inputs)))

    scores = taylor_scores(groups, params=params, gradients=jax.grad(loss)(params))

    def towards(t, gone):
        return loss(jax.tree.map(lambda a, b: a + t * (b - a), params, gone))

    change_towards = jax.jit(jax.grad(towards))
    for group in groups:
        for i in range(group.size):
            masks = plan_units(groups, {group.name: np.arange(group.size) != i}).masks(params)
            change = change_towards(0.0, jp.apply_masks(params, masks))
            np.testing.assert_allclose(scores[group.name][i], change**2, rtol=1e-3, atol=1e-6)


def test_fpgm_is_the_sum_of_distances_to_the_other_units():
    params = {"up": jnp.array([[0.0, 3.0, 0.0]]), "down": jnp.array([[0.0], [4.0], [8.0]])}
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
    # (0, 0), (3, 4), (0, 8): distances 5, 8, 5
    np.testing.assert_allclose(fpgm_scores(groups, params)["down[0]"], [13.0, 10.0, 13.0])


def test_fpgm_of_equal_units_is_zero_far_from_the_origin():
    params = {"up": jnp.full((3, 4), 1e4) + 0.1, "down": jnp.full((4, 1), 1e4)}
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 3)))
    assert fpgm_scores(groups, params)["down[0]"].tolist() == [0.0] * 4


def test_fpgm_takes_a_composed_axis_apart():
    """Heads are the outer factor of q's features: unit 1 of them owns columns 4 to 7."""
    fn, params, inputs = plain_models.fused_qkv("split")
    groups = jp.find_groups(fn, params, *inputs)
    heads = next(group for group in groups if group.size == 3)
    qkv, out = np.asarray(params["qkv"]).reshape(5, 3, 3, 4), np.asarray(params["out"]).reshape(3, 4, 2)
    units = np.concatenate([np.moveaxis(qkv, 2, 0).reshape(3, -1), out.reshape(3, -1)], 1)
    expected = np.linalg.norm(units[:, None] - units[None], axis=-1).sum(1)
    np.testing.assert_allclose(fpgm_scores(groups, params)[heads.name], expected, rtol=1e-5)


def test_batch_norm_scale_of_the_groups_that_have_one():
    fn, params, inputs = plain_models.residual_cnn()
    groups = jp.find_groups(fn, params, *inputs)
    scores = batch_norm_scores(groups, params)
    by_size = {group.size: scores[group.name] for group in groups}
    np.testing.assert_allclose(by_size[6], jnp.abs(params["bn1_scale"]), rtol=1e-6)
    both = jnp.abs(params["bn0_scale"]) + jnp.abs(params["bn2_scale"])
    np.testing.assert_allclose(by_size[8], both, rtol=1e-6)


def test_batch_norm_scale_finds_flax_scales_and_says_where_there_are_none():
    fn, params, inputs = library_models.MODELS["Linen CNN"]()
    groups = jp.find_groups(fn, params, *inputs)
    assert len(batch_norm_scores(groups, params).by_group) == 2
    with pytest.raises(ValueError, match="matches no parameter that has units"):
        batch_norm_scores(groups, params, scales="weight")
    with pytest.raises(ValueError, match="is not a regular expression"):
        batch_norm_scores(groups, params, scales="(")


def test_groups_without_a_scale_must_be_excluded():
    params = weights(up=(3, 4), bn_scale=(4,), mid=(4, 5), down=(5, 2))

    def fn(p, x):
        return jnp.tanh(jnp.tanh(x @ p["up"] * p["bn_scale"]) @ p["mid"]) @ p["down"]

    groups = jp.find_groups(fn, params, data(2, 3))
    scores = batch_norm_scores(groups, params)
    with pytest.raises(ValueError, match=r"no scores for group 'down\[0\]' \(1 in all\): pass exclude="):
        jp.plan_removal(groups, params, 0.3, score=scores)
    plan = jp.plan_removal(groups, params, 0.3, score=scores, exclude="down")
    assert plan.small_shapes["down"] == (5, 2) and plan.small_shapes["up"][1] < 4
    assert plan.kept["up"][1][int(jnp.argmin(jnp.abs(params["bn_scale"])))] == np.False_


MANY = ("transformer", "llama", "depthwise", "channel shuffle", "DenseNet", "slices", "mixed reductions")


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", [*MANY, "Linen MobileNet"])
def test_every_score_is_finite_and_tells_units_apart(name):
    fn, params, inputs = {**plain_models.MODELS, **library_models.MODELS}[name]()
    groups = jp.find_groups(fn, params, *inputs)
    for scores in (
        l2_scores(groups, params),
        fpgm_scores(groups, params),
        taylor_scores(groups, params=params, gradients=jax.tree.map(jnp.cos, params)),
        activation_scores(groups, params, [inputs]),
    ):
        assert set(scores.by_group) == {group.name for group in groups}
        for s in scores.by_group.values():
            assert (np.isfinite(s).all() and (s >= 0).all() and s.min() < s.max()) or s.size == 2


# What may be given as a score.


def test_a_tree_adds_up_over_members_and_none_does_not_count(hand):
    params, groups = hand
    assert unit_scores(groups, params, params)["b[0]"].tolist() == [19.0, 9.0]
    only_bias = {"up": None, "b": jnp.array([5.0, 6.0]), "down": None}
    assert unit_scores(groups, params, only_bias)["b[0]"].tolist() == [5.0, 6.0]
    assert unit_scores(groups, params, lambda p: {**only_bias, "b": p["b"]})["b[0]"].tolist() == [0.0, 2.0]
    broadcast = {"up": jnp.array([[1.0, 0.5]]), "b": None, "down": None}
    assert unit_scores(groups, params, broadcast)["b[0]"].tolist() == [2.0, 1.0]


def test_unit_scores_and_functions_that_give_them_are_taken_as_they_are(hand):
    params, groups = hand
    scores = UnitScores({"b[0]": jnp.array([1.0, 2.0])})
    for score in (scores, lambda p: scores, lambda p: l2_scores(groups, {**p, "up": p["up"] * 0})):
        plan = jp.plan_removal(groups, params, 0.5, budget="units", score=score)
        assert plan.kept["b"][0].tolist() == (
            [False, True] if score is scores else plan.kept["b"][0].tolist()
        )
    assert jp.plan_removal(groups, params, 0.5, budget="units", score=lambda p: scores).kept["b"][
        0
    ].tolist() == [False, True]


def test_normalize_applies_to_unit_scores():
    """Without it group a (scores 1, 2) goes before group b (3, 30); by the mean 3 / 16.5 goes first."""
    params = weights(x=(2, 2), y=(2, 2), z=(2, 1))
    groups = jp.find_groups(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["x"]) @ p["y"]) @ p["z"], params, jnp.ones((1, 2))
    )
    first, second = (group.name for group in groups)
    scores = UnitScores({first: np.array([1.0, 2.0]), second: np.array([3.0, 30.0])})
    kept = {}
    for how in (None, "mean", "max"):
        plan = jp.plan_removal(groups, params, 0.25, "global", scores, budget="units", normalize=how)
        kept[how] = [int(plan.kept[name[0]][int(name[2])] is None) for name in (first, second)]
    assert kept == {None: [0, 1], "mean": [1, 0], "max": [1, 0]}


class Net(eqx.Module):
    """A module that can be called, as Equinox's are."""

    up: Any
    down: Any
    name: str = eqx.field(static=True, default="net")

    def __call__(self, x):
        return jnp.tanh(x @ self.up) @ self.down


def test_a_callable_module_of_the_structure_of_the_parameters_is_a_tree():
    model = Net(jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [1.0]]))
    groups = jp.find_groups(lambda model, x: model(x), model, jnp.ones((1, 1)))
    (scores,) = unit_scores(groups, model, jax.tree.map(jnp.square, model)).by_group.values()
    assert scores.tolist() == [10.0, 5.0]
    (scores,) = unit_scores(groups, model, lambda m: jax.tree.map(jnp.square, m)).by_group.values()
    assert scores.tolist() == [10.0, 5.0]
    (scores,) = unit_scores(groups, model, jax.tree_util.Partial(lambda m: m)).by_group.values()
    assert scores.tolist() == [4.0, 3.0]
    (scores,) = unit_scores(groups, model, Net(model.up, None)).by_group.values()
    assert scores.tolist() == [1.0, 2.0]


def test_a_lone_array_as_parameters_takes_a_function_and_an_array():
    w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    groups = jp.find_groups(lambda w, x: jnp.sum(jnp.tanh(x @ w), -1), w, jnp.ones((1, 2)))
    (group,) = groups
    assert unit_scores(groups, w, lambda w: 2 * w)[group.name].tolist() == [8.0, 12.0]
    assert unit_scores(groups, w, w)[group.name].tolist() == [4.0, 6.0]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (UnitScores({"nope": np.ones(2)}), "names 'nope', which is not a group"),
        (UnitScores({"b[0]": np.ones(3)}), r"must have shape \(2,\) for group 'b\[0\]', got \(3,\)"),
        (UnitScores({"b[0]": np.array([1.0, np.nan])}), "not finite"),
        ({"up": 1.0}, "`score` must have the tree structure of the parameters"),
        (lambda p: {"up": 1.0}, "`score` must have the tree structure of the parameters"),
        ({"up": jnp.ones((2, 3)), "b": None, "down": None}, r"got shape \(2, 3\) at 'up'"),
        ({"up": "large", "b": None, "down": None}, "got str at 'up'"),
    ],
)
def test_says_what_is_wrong_with_a_score(hand, score, message):
    params, groups = hand
    with pytest.raises(ValueError, match=message):
        jp.plan_removal(groups, params, 0.5, score=score)


def test_scores_of_bfloat16_parameters_and_of_traced_shapes():
    fn, params, inputs = plain_models.mlp()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    x = inputs[0].astype(jnp.bfloat16)
    groups = jp.find_groups(fn, half, x)
    for scores in (l2_scores(groups, half), fpgm_scores(groups, half), activation_scores(groups, half, [x])):
        assert all(s.dtype == np.float64 for s in scores.by_group.values())
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    for name, s in l2_scores(groups, half).by_group.items():
        np.testing.assert_allclose(s, l2_scores(groups, wide)[name])
    with pytest.raises(ValueError, match=r"shapes that the groups were found with: \(3, 8\) at 'w1'"):
        l2_scores(groups, {**half, "w1": half["w1"][:, :7]})


def test_mean_scores_by_hand_and_its_mistakes():
    scores = [UnitScores({"a": np.array([1.0, 4.0])}), UnitScores({"a": [3.0, 0.0]})]
    mean = jp.surgery.mean_scores(lambda i: scores[i], iter([0, 1]))
    np.testing.assert_array_equal(mean["a"], [2, 2])
    weighted = jp.surgery.mean_scores(lambda i, n: scores[i], [(0, 1), (1, 3)], weight=lambda i, n: n)
    np.testing.assert_array_equal(weighted["a"], [2.5, 1])
    for score, batches, error, message in (
        (lambda i: scores[i], [], ValueError, "at least one batch"),
        (lambda i: scores[i].by_group, [0], TypeError, r"must return UnitScores .* batch 0"),
        (lambda i: UnitScores({"a": np.zeros(i + 1)}), [0, 1], ValueError, "others for batch 1"),
    ):
        with pytest.raises(error, match=message):
            jp.surgery.mean_scores(score, batches)
    with pytest.raises(ValueError, match=r"`weight` must return positive numbers, got 0.0"):
        jp.surgery.mean_scores(lambda i: scores[i], [0], weight=lambda i: 0)
