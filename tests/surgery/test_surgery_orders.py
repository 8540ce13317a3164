"""Orders of units for N:M: the best ones in small cases, never worse ones elsewhere, and what else is reordered."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.surgery.orders.search import best_order, kept_sum

X = jnp.ones((2, 6))


def mlp(params, x):
    return jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]


def weights(hidden=16, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"up": (6, hidden), "bias": (hidden,), "down": (hidden, 5)}
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def kept_by_masks(score, n=2, m=4):
    """What N:M keeps along the first axis, by sorting in float64."""
    groups = np.sort(np.asarray(score, np.float64).reshape(-1, m, score.shape[-1]), axis=1)
    return groups[:, m - n :].sum()


def all_splits(count, m):
    """Every way to split rows into groups of m."""
    if not count:
        yield []
        return
    rows = list(count)
    for others in itertools.combinations(rows[1:], m - 1):
        rest = [row for row in rows[1:] if row not in others]
        for split in all_splits(rest, m):
            yield [rows[0], *others, *split]


@pytest.mark.parametrize(("n", "m", "rows"), [(2, 4, 8), (1, 4, 8), (3, 4, 8), (1, 2, 4), (1, 3, 6)])
@pytest.mark.parametrize("kind", ["random", "ties", "one column"])
def test_two_groups_get_the_best_of_all_orders(n, m, rows, kind):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scores = rng.random((rows, 1 if kind == "one column" else 7)).astype(np.float32)
        scores = np.round(scores * 3) if kind == "ties" else scores
        best = max(kept_by_masks(scores[split], n, m) for split in all_splits(range(rows), m))
        order = best_order(scores, n, m, rounds=3)
        assert sorted(order) == list(range(rows))
        assert kept_by_masks(scores[order], n, m) == pytest.approx(best, rel=1e-6)


def test_three_groups_get_nearly_the_best_of_all_orders():
    scores = np.random.default_rng(0).random((12, 5)).astype(np.float32)
    best = max(kept_by_masks(scores[split]) for split in all_splits(range(12), 4))  # of 5775
    assert kept_by_masks(scores[best_order(scores, 2, 4, rounds=10)]) > 0.999 * best


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 3)])
def test_more_rounds_never_keep_less(n, m):
    scores = np.random.default_rng(1).standard_normal((48, 9)).astype(np.float32)  # of any sign
    kept = [kept_by_masks(scores[best_order(scores, n, m, rounds)], n, m) for rounds in (0, 1, 2, 4, 8)]
    assert kept_sum(scores, n, m) == pytest.approx(kept_by_masks(scores, n, m), rel=1e-5)
    assert kept_by_masks(scores, n, m) <= kept[0] + 1e-4
    assert all(a <= b + 1e-4 for a, b in itertools.pairwise(kept))


def test_an_order_that_is_best_already_is_not_changed():
    scores = np.tile(np.array([[1.0], [0], [1], [0]], np.float32), (4, 1))
    assert best_order(scores, 2, 4, rounds=5).tolist() == list(range(16))
    assert best_order(np.ones((8, 3), np.float32), 2, 4, rounds=5).tolist() == list(range(8))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_function_is_the_same_and_the_masks_keep_more(dtype):
    params = weights(dtype=dtype)
    groups = jp.find_groups(mlp, params, X)
    orders = jp.surgery.find_orders(groups, params)
    new = jp.permute(groups, params)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(new))
    wide = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (params, new)]
    np.testing.assert_allclose(mlp(wide[1], X), mlp(wide[0], X), rtol=1e-5, atol=1e-6)

    def kept(params):
        score = jp.scores.magnitude(params)
        where = jp.prunable(params, include="down")
        masks = jp.make_masks(score, 0.5, structure=jp.NM(2, 4), where=where)
        masked = jp.apply_masks(params, masks)["down"]
        return float(
            jnp.abs(masked).astype(jnp.float32).sum() / jnp.abs(score["down"].astype(jnp.float32)).sum()
        )

    before, after = orders.retained["bias[0]"]
    assert after > before
    assert (kept(params), kept(new)) == (pytest.approx(before, rel=1e-3), pytest.approx(after, rel=1e-3))
    assert "bias[0]" in str(orders)


def test_scores_of_one_leaf_decide_and_leaves_of_nan_do_not_count():
    params = weights(8)
    groups = jp.find_groups(mlp, params, X)
    score = jnp.tile(jnp.array([9.0, 8, 7, 6, 1, 1, 1, 1])[:, None], (1, 5))
    scores = {"up": jnp.full((6, 8), jnp.nan), "bias": jnp.nan, "down": score}
    orders = jp.surgery.find_orders(groups, params, scores=scores)
    assert orders.retained["bias[0]"] == (pytest.approx(19 / 34), pytest.approx(30 / 34))
    scores["down"] = scores["down"].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="`scores` must be finite, got NaN or infinite values at 'down'"):
        jp.surgery.find_orders(groups, params, scores=scores)
    with pytest.raises(ValueError, match="`params` must be finite, got NaN or infinite values at 'down'"):
        jp.permute(groups, {**params, "down": jnp.full((8, 5), jnp.inf)})


def test_units_at_the_edge_of_a_part_stay_and_whole_groups_of_m_move():
    """Two layers beside each other: 6 units, then 10. The groups of 4 begin at 0, 4 (of both), 8 and 12."""
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 6), "b": (6, 10), "c": (16, 7)}
    params = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}

    def fn(params, x):
        return jnp.tanh(jnp.concatenate([x @ params["a"], x @ params["b"]], -1)) @ params["c"]

    groups = jp.find_groups(fn, params, X)
    orders = jp.surgery.find_orders(groups, params)
    assert "no weight's pattern" in orders.fixed["a[1]"]  # one whole group of 4: nothing to exchange
    assert orders.units["b[1]"][:2].tolist() == [0, 1]
    assert orders.units["b[1]"][2:].tolist() != list(range(2, 10))
    new = orders.apply(params)
    np.testing.assert_allclose(fn(new, X), fn(params, X), rtol=1e-5, atol=1e-6)
    assert kept_by_masks(abs(new["c"])) > kept_by_masks(abs(params["c"]))


def test_channels_of_a_convolution_move_alike_at_all_positions():
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.standard_normal((3, 3, 2, 8)), jnp.float32),
        "b": jnp.asarray(
            rng.standard_normal((3, 3, 8, 5)) * np.array([[9, 9, 9, 9, 1, 1, 1, 1]]).T, jnp.float32
        ),
    }

    def fn(params, x):
        for name in ("a", "b"):
            x = jax.lax.conv_general_dilated(
                jax.nn.relu(x), params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x

    x = jnp.asarray(rng.standard_normal((1, 4, 4, 2)), jnp.float32)
    groups = jp.find_groups(fn, params, x)
    new = jp.permute(groups, params)
    np.testing.assert_allclose(fn(new, x), fn(params, x), rtol=1e-4, atol=1e-4)
    splits = map(np.array, all_splits(range(8), 4))
    best = max(kept_by_masks(abs(params["b"][:, :, split]).reshape(-1, 5)) for split in splits)
    assert kept_by_masks(abs(new["b"]).reshape(-1, 5)) == pytest.approx(best, rel=1e-6)
    assert kept_by_masks(abs(params["b"]).reshape(-1, 5)) < 0.9 * best


def test_heads_keep_their_order_and_their_value_dimensions_move_within_each():
    rng = np.random.default_rng(0)
    shapes = {"q": (6, 2, 8), "k": (6, 2, 8), "v": (6, 2, 8), "o": (2, 8, 6)}
    params = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}

    def attention(params, x):
        q, k, v = (jnp.einsum("ti,ihd->htd", x, params[name]) for name in "qkv")
        mixed = jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v
        return mixed.swapaxes(0, 1).reshape(len(x), -1) @ params["o"].reshape(-1, 6)

    groups = jp.find_groups(attention, params, X)
    orders = jp.surgery.find_orders(groups, params)
    assert list(orders.units) == ["o[1]"]
    assert len(orders.fixed) == 2  # heads, and the dimensions of queries and keys
    new = orders.apply(params)
    np.testing.assert_allclose(attention(new, X), attention(params, X), rtol=1e-5, atol=1e-6)
    assert kept_by_masks(abs(new["o"]).reshape(-1, 6)) > kept_by_masks(abs(params["o"]).reshape(-1, 6))


def test_orders_apply_to_masks_under_jit_and_to_shapes():
    params = weights()
    groups = jp.find_groups(mlp, params, X)
    orders = jp.surgery.find_orders(groups, params)
    order = orders.units["bias[0]"]
    masks = {
        "up": jnp.ones((1, 16), bool).at[0, :5].set(False),
        "bias": True,
        "down": jnp.ones((16, 1), bool),
    }
    moved = jp.permute(groups, masks, orders=orders)
    assert moved["bias"] is True
    np.testing.assert_array_equal(moved["up"][0], np.asarray(masks["up"][0])[order])
    jitted = jax.jit(lambda params: jp.permute(groups, params, orders=orders))(params)
    jax.tree.map(np.testing.assert_array_equal, jitted, orders.apply(params))
    shapes = jax.eval_shape(lambda: params)
    assert jp.permute(groups, shapes, orders=orders) == shapes
    with pytest.raises(TypeError, match="outside `jit`"):
        jax.jit(lambda params: jp.permute(groups, params))(params)
    with pytest.raises(ValueError, match="lacks 'bias'"):
        orders.apply({"up": params["up"], "down": params["down"]})
    with pytest.raises(ValueError, match="'down' must have shape"):
        orders.apply({**params, "down": params["down"][:8]})


@pytest.mark.parametrize(
    "tx",
    [
        optax.adamw(1e-2),
        optax.sm3(1e-2),
        optax.adafactor(1e-2, min_dim_size_to_factor=4),
        optax.flatten(optax.adam(1e-2)),
        optax.chain(optax.trace(0.9), optax.scale(-1e-2)),
    ],
    ids=["adamw", "sm3", "adafactor", "flatten", "momentum"],
)
def test_a_training_step_in_the_new_order_is_the_same_step(tx):
    params = weights()
    groups = jp.find_groups(mlp, params, X)
    orders = jp.surgery.unit_orders(groups, {"bias[0]": np.random.default_rng(3).permutation(16)})
    x = jnp.asarray(np.random.default_rng(4).standard_normal((4, 6)), jnp.float32)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda params: jnp.sum(jnp.square(mlp(params, x))))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(params, tx.init(params))
    there = step(orders.apply(params), orders.permute_opt_state(state))[0]
    expected = orders.apply(step(params, state)[0])
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_mistakes_are_named():
    params = weights(8)
    groups = jp.find_groups(mlp, params, X)
    with pytest.raises(ValueError, match="0 < n < m, got n=4, m=2"):
        jp.permute(groups, params, 4, 2)
    with pytest.raises(ValueError, match="`rounds`"):
        jp.permute(groups, params, rounds=-1)
    with pytest.raises(ValueError, match="`only` pattern 'nothing' matched no group"):
        jp.permute(groups, params, only="nothing")
    with pytest.raises(ValueError, match="must have the shapes that the groups were found with"):
        jp.permute(groups, weights(12))
    with pytest.raises(ValueError, match="permutation of the 8 units"):
        jp.surgery.unit_orders(groups, {"bias[0]": [0, 0, 1, 2, 3, 4, 5, 6]})
    assert "excluded" in jp.surgery.find_orders(groups, params, exclude="bias").fixed["bias[0]"]


def test_a_group_whose_order_matters_is_left_and_says_why():
    def fn(params, x):
        return (jnp.tanh(x @ params["up"]) * jnp.arange(8.0)) @ params["down"]

    params = weights(8)
    groups = jp.find_groups(fn, params, X)
    fixed = jp.surgery.find_orders(groups, params).fixed
    assert "a constant differs between them in 'mul'" in fixed["down[0]"]
    with pytest.raises(ValueError, match="depends on the order of its units"):
        jp.surgery.unit_orders(groups, {"down[0]": np.arange(8)[::-1]})
