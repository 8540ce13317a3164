"""The sparsity of each weight of a convolutional network, given one number for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.calibration.engine.model import open_model
from jaxprune.calibration.engine.shares import is_convolutional, shares_by_magnitude


def conv(x, w, stride=1, groups=1, dilation=1):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", rhs_dilation=(dilation, dilation), feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {"first": draw(3, 3, 2, 4), "head": draw(4, 3, seed=1), "second": draw(3, 3, 4, 4, seed=2)}
IMAGES = draw(8, 5, 5, 2, seed=3)


def net(params, x):
    x = jax.nn.relu(conv(x, params["first"]))
    return jax.nn.relu(conv(x, params["second"])).mean((1, 2)) @ params["head"]


def model_of(fn, params, x):
    return open_model(fn, params, [x], None, None)


CASES = {
    "kernels": (lambda p, x: conv(x, p["w"]), (3, 3, 2, 4), True),
    "dilated": (lambda p, x: conv(x, p["w"], stride=2, dilation=2), (2, 2, 2, 4), True),
    "depthwise": (lambda p, x: conv(x, p["w"], groups=2), (3, 3, 1, 2), True),
    "one position": (lambda p, x: conv(x, p["w"]), (1, 1, 2, 4), False),
    "patches": (lambda p, x: conv(x, p["w"], stride=2), (2, 2, 2, 4), False),
    "product": (lambda p, x: x @ p["w"], (2, 4), False),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_of_overlapping_windows_make_a_convolutional_network(case):
    fn, shape, expected = CASES[case]
    assert is_convolutional(model_of(fn, {"w": draw(*shape)}, IMAGES).program.uses) == expected


@pytest.mark.parametrize(("n", "expected"), [(7, True), (8, False)])
def test_one_convolution_before_many_matrices_does_not(n, expected):
    params = {"stem": draw(3, 3, 2, 4), "blocks": [draw(4, 4) for _ in range(n)]}

    def fn(params, x):
        x = conv(x, params["stem"])
        for w in params["blocks"]:
            x = jnp.tanh(x @ w)
        return x

    assert is_convolutional(model_of(fn, params, IMAGES).program.uses) == expected


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.77, 0.99])
def test_shares_are_those_of_one_threshold_for_lamp_scores(sparsity):
    found = shares_by_magnitude(model_of(net, PARAMS, IMAGES), sparsity)
    scores = []
    for w in PARAMS.values():  # by the definition, weight by weight
        squares = np.square(w.astype(np.float64)).ravel()
        scores.append(np.array([s / squares[squares >= s].sum() for s in squares]))
    n = round(sparsity * sum(map(len, scores)))
    lowest = np.argsort(np.concatenate(scores))[:n]
    ends = np.cumsum([0, *map(len, scores)])
    expected = [((ends[i] <= lowest) & (lowest < ends[i + 1])).sum() for i in range(3)]
    assert [round(found[i] * len(mine)) for i, mine in enumerate(scores)] == expected


def test_equal_scores_are_pruned_in_the_order_of_leaves_and_counts_are_exact():
    params = {"first": jnp.zeros((3, 3, 2, 4)), "head": jnp.ones((4, 1)), "second": jnp.zeros((3, 3, 4, 4))}
    model = model_of(net, params, IMAGES)
    found = shares_by_magnitude(model, 0.5)  # 110 of 220 weights
    assert [round(found[0] * 72), round(found[1] * 4), round(found[2] * 144)] == [72, 0, 38]
    assert all(0 <= share < 1 for share in shares_by_magnitude(model, 0.999).values())


def test_a_number_is_the_sparsity_of_a_whole_convolutional_network():
    params, masks = jp.reconstruct(net, PARAMS, [IMAGES], 0.6)
    pruned = {key: int((~np.asarray(mask)).sum()) for key, mask in masks.items()}
    assert sum(pruned.values()) == round(0.6 * 228)
    assert pruned["head"] / 12 < pruned["second"] / 144
    equal = jp.reconstruct(net, PARAMS, [IMAGES], jp.allocate.uniform(PARAMS, 0.5))[1]
    assert {key: int(mask.sum()) for key, mask in equal.items()} == {"first": 36, "head": 6, "second": 72}
    assert all((np.asarray(w)[~np.asarray(masks[key])] == 0).all() for key, w in params.items())


def test_kernels_of_bfloat16_have_shares_too():
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), PARAMS)
    _, masks = jp.reconstruct(net, params, [jnp.asarray(IMAGES, jnp.bfloat16)], 0.6, method=jp.MaskOnly())
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.6 * 228)


def test_a_pattern_prunes_every_layer_alike():
    where = {"first": False, "head": False, "second": True}
    masks = jp.reconstruct(net, PARAMS, [IMAGES], structure=jp.NM(2, 4), where=where, method=jp.MaskOnly())[1]
    assert int(masks["second"].sum()) == 72


def test_targets_are_half_dense_in_a_convolutional_network_unless_weights_keep_their_values():
    found = {
        targets: jp.reconstruct(net, PARAMS, [IMAGES], 0.5, dense_targets=targets)[0]
        for targets in (None, 0.5)
    }
    jax.tree.map(np.testing.assert_array_equal, found[None], found[0.5])
    params, masks = jp.reconstruct(net, PARAMS, [IMAGES], 0.5, method=jp.MaskOnly("magnitude"))
    kept = jax.tree.map(lambda w, mask: np.where(mask, w, 0), PARAMS, masks)
    jax.tree.map(np.testing.assert_array_equal, params, kept)


def test_weights_that_are_not_finite_are_named():
    broken = {**PARAMS, "second": np.full_like(PARAMS["second"], np.inf)}
    with pytest.raises(ValueError, match=r"finite, got NaN or infinite values at 'second'"):
        jp.reconstruct(net, broken, [IMAGES], 0.5)
