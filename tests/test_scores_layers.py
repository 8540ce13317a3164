"""Scores that compare the weights of one layer: LAMP, FPGM, scales of norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp


def lamp_reference(w):
    """The definition: u before v where |u| < |v|, or as large and earlier; a double loop in float64."""
    w = np.abs(np.asarray(w, np.float64)).ravel()
    scores = np.zeros(w.size)
    for u in range(w.size):
        left = sum(w[v] ** 2 for v in range(w.size) if (w[v], v) >= (w[u], u))
        scores[u] = w[u] ** 2 / left if left else 0
    return scores


@pytest.mark.slow
def test_lamp_by_hand():
    # Squares 9, 1, 16, 0: of all 26, of the larger two 25, of the largest 16.
    scores = jp.scores.lamp({"w": jnp.array([[-3.0, 1.0], [4.0, 0.0]])})["w"]
    np.testing.assert_allclose(scores, [[9 / 25, 1 / 26], [1, 0]], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("decimals", [6, 0])
def test_lamp_against_its_definition(dtype, decimals):
    """Rounded to whole numbers there are many ties."""
    w = jnp.round(2 * jax.random.normal(jax.random.key(0), (6, 7), dtype), decimals)
    scores = jp.scores.lamp({"w": w})["w"]
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(np.ravel(scores), lamp_reference(w), rtol=1e-5)


@pytest.mark.slow
def test_lamp_of_equal_weights_falls_by_index_and_is_one_for_the_last():
    scores = jp.scores.lamp({"w": jnp.full((5,), -0.3)})["w"]
    np.testing.assert_allclose(scores, 1 / np.array([5, 4, 3, 2, 1]), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lamp_of_very_small_and_very_large_weights(size):
    scores = jp.scores.lamp({"w": size * jnp.array([1.0, 2.0])})["w"]
    np.testing.assert_allclose(scores, [1 / 5, 1], rtol=1e-5)


@pytest.mark.slow
def test_lamp_in_a_large_layer_is_in_the_order_of_magnitude_and_near_float64():
    w = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    scores = np.asarray(jp.scores.lamp({"w": jnp.asarray(w)})["w"])
    order = np.argsort(np.abs(w), kind="stable")
    squares = np.square(w[order].astype(np.float64))
    np.testing.assert_allclose(scores[order], squares / squares[::-1].cumsum()[::-1], rtol=2e-5)


@pytest.mark.slow
def test_lamp_keeps_layers_alive_where_magnitude_empties_them():
    params = {
        "large": jnp.linspace(1, 2, 900).reshape(30, 30),
        "small": jnp.linspace(0.01, 0.02, 100).reshape(10, 10),
    }
    by_magnitude = jp.make_masks(jp.scores.magnitude(params), 0.9)
    by_lamp = jp.make_masks(jp.scores.lamp(params), 0.9)
    assert int(by_magnitude["small"].sum()) == 0 and int(by_lamp["small"].sum()) > 5
    assert jp.sparsity(params, by_lamp) == 0.9
    # Scale means nothing: the layers lose the same share of like distributions.
    alike = {"a": params["small"], "c": 1e3 * params["small"]}
    masks = jp.make_masks(jp.scores.lamp(alike), 0.7)
    assert int(masks["a"].sum()) == int(masks["c"].sum()) == 30


@pytest.mark.slow
def test_layers_of_one_weight_none_and_only_zeros():
    params = {
        "one": jnp.full((1, 1), 0.5),
        "none": jnp.zeros((0, 3)),
        "zeros": jnp.zeros((2, 2)),
        "n": jnp.arange(2),
    }
    scores = jp.scores.lamp(params)
    assert scores["one"].tolist() == [[1]] and scores["none"].shape == (0, 3)
    assert scores["zeros"].tolist() == [[0, 0], [0, 0]] and scores["n"] is params["n"]
    assert jp.scores.fpgm(params)["one"].tolist() == [[0]]


def fpgm_reference(w, axis):
    filters = np.moveaxis(np.asarray(w, np.float64), axis, 0)
    return [np.mean([np.sqrt(((a - b) ** 2).sum()) for b in filters]) for a in filters]


@pytest.mark.slow
@pytest.mark.parametrize("axis", [-1, 0, 2])
def test_fpgm_against_its_definition(axis):
    w = jax.random.normal(jax.random.key(1), (3, 3, 4, 5))
    scores = jp.scores.fpgm({"w": w}, jp.Channels(axis))["w"]
    want = np.reshape(fpgm_reference(w, axis), [-1 if i == axis % 4 else 1 for i in range(4)])
    np.testing.assert_allclose(scores, np.broadcast_to(want, w.shape), rtol=1e-5)


@pytest.mark.slow
def test_fpgm_removes_the_filter_that_the_others_stand_for_and_not_the_smallest():
    w = jnp.array([[0.0, 5.0, 5.1, 10.0, 5.05]])  # the first has the smallest norm
    masks = jp.make_masks(jp.scores.fpgm({"w": w}), 0.2, structure=jp.Channels())["w"]
    assert masks.tolist() == [[True, True, True, True, False]]


@pytest.mark.slow
def test_fpgm_tells_near_copies_apart():
    w = 100 + jnp.array([[0.0, 1e-4, 3e-4]])
    want = fpgm_reference(w, -1)
    np.testing.assert_allclose(jp.scores.fpgm({"w": w})["w"][0], want, rtol=1e-5)


NORMED = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 3)), "bias": jnp.zeros(3)},
    "BatchNorm_0": {"scale": jnp.array([0.5, -2.0, 0.1]), "bias": jnp.zeros(3)},
    "Dense_0": {"kernel": jnp.ones((3, 2))},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "norms", [{"Conv_0/kernel": "BatchNorm_0/scale"}, {r"Conv_(\d+)/kernel": r"BatchNorm_\1/scale"}]
)
def test_batch_norm_scale_by_hand(norms):
    scores = jp.scores.batch_norm_scale(NORMED, norms)
    np.testing.assert_array_equal(scores["BatchNorm_0"]["scale"], np.float32([0.5, 2, 0.1]))
    np.testing.assert_array_equal(scores["Conv_0"]["kernel"][1, 2, 0], np.float32([0.5, 2, 0.1]))
    where = jp.prunable(NORMED, include="Conv_0/kernel")
    masks = jp.make_masks(scores, 1 / 3, structure=jp.Channels(), where=where)
    assert masks["Conv_0"]["kernel"].ravel().tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"`scores` must be numbers, .*, got 6 NaN .* at 'Dense_0/kernel'"):
        jp.make_masks(scores, 0.3, structure=jp.Channels())


def test_batch_norm_scale_along_another_axis():
    params = {"w": jnp.ones((2, 5)), "gamma": jnp.array([1.0, -3.0])}
    scores = jp.scores.batch_norm_scale(params, {"w": "gamma"}, jp.Channels(0))
    assert scores["w"][:, 4].tolist() == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_layers_give_the_same_scores(kind):
    params = {"w": jax.random.normal(jax.random.key(4), (8, 4)), "gamma": jnp.arange(4.0)}
    scores = {
        "lamp": jp.scores.lamp,
        "fpgm": jp.scores.fpgm,
        "batch_norm_scale": lambda p: jp.scores.batch_norm_scale(p, {"w": "gamma"}),
    }
    wanted = {name: score(params) for name, score in scores.items()}
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        sharded = {
            "w": jax.device_put(params["w"], NamedSharding(mesh, P("a", "b"))),
            "gamma": jax.device_put(params["gamma"], NamedSharding(mesh, P("b"))),
        }
        where = {"w": True, "gamma": False}
        for name, score in scores.items():
            got = jax.jit(score)(sharded)
            np.testing.assert_allclose(got["w"], wanted[name]["w"], rtol=1e-5, err_msg=name)
            jp.apply_masks(sharded, jp.make_masks(got, 0.5, where=where))


def test_bad_input_is_named():
    for score in (jp.scores.fpgm, lambda p, s: jp.scores.batch_norm_scale(p, {}, s)):
        with pytest.raises(TypeError, match=r"`structure` must be Channels\(axis\), got Block"):
            score({"w": jnp.ones((2, 2))}, jp.Block((2, 2)))
    with pytest.raises(ValueError, match="`norms` pattern 'Conv_9/kernel' matched no parameter"):
        jp.scores.batch_norm_scale(NORMED, {"Conv_9/kernel": "BatchNorm_0/scale"})
    with pytest.raises(
        ValueError, match="`norms` maps 'Conv_0/kernel' to 'BatchNorm_1/scale', which is not a parameter"
    ):
        jp.scores.batch_norm_scale(NORMED, {"Conv_0/kernel": "BatchNorm_1/scale"})
    with pytest.raises(ValueError, match=r"the scale must be as long as axis -1\. Pass the axis"):
        jp.scores.batch_norm_scale(NORMED, {"Dense_0/kernel": "BatchNorm_0/scale"})
