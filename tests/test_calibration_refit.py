"""Training of residual branches toward the dense ones: what every refit promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from one_weight import draw

import jaxprune as jp

WIDTH, HIDDEN, LAYERS = 6, 10, 2
FAST = jp.Refit(steps=12, learning_rate=0.03)


def stacked():
    return {
        "norm": jnp.ones((LAYERS, WIDTH)),
        "up": draw(0, LAYERS, WIDTH, HIDDEN) / 2,
        "bias": jnp.zeros((LAYERS, HIDDEN)),
        "down": draw(1, LAYERS, HIDDEN, WIDTH) / 3,
    }


def layer(x, p):
    h = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * p["norm"]
    return x + jnp.tanh(h @ p["up"] + p["bias"]) @ p["down"]


def scan(params, x):
    return lax.scan(lambda x, p: (layer(x, p), None), x, params)[0]


def loop(params, x):
    for p in params:
        x = layer(x, p)
    return x


def listed(params):
    return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(LAYERS)]


def batches():
    return list(draw(2, 3, 40, WIDTH))


def magnitude(params, share=0.5):
    return jp.make_masks(jp.scores.magnitude(params), share, scope="local")


def error(fn, params, dense):
    return float(_error(fn, params, dense, jnp.concatenate(batches())))


@functools.partial(jax.jit, static_argnums=0)
def _error(fn, params, dense, x):
    return jnp.sum((fn(params, x) - fn(dense, x)) ** 2)


def refitted(fn, params, masks, settings=FAST, **kwargs):
    rows = []
    return jp.refit(fn, params, masks, batches(), settings, on_layer=rows.append, **kwargs), rows


@pytest.mark.slow
def test_every_window_improves_zeros_remain_and_scans_are_their_layers():
    params = listed(stacked())
    masks = magnitude(params)
    new, rows = refitted(loop, params, masks)
    assert [row.path for row in rows] == ["0/down, 0/up", "1/down, 1/up"]
    assert all(0 < row.error < 0.9 * row.before and row.sparsity == 0.5 for row in rows)
    assert error(loop, new, params) < 0.9 * error(loop, jp.apply_masks(params, masks), params)
    for mask, weight in zip(jax.tree.leaves(masks), jax.tree.leaves(new), strict=True):
        assert mask is True or not np.any(np.asarray(weight)[~np.asarray(mask)])
    assert np.any(new[0]["bias"]) and np.any(new[1]["norm"] != 1)
    stack = jax.tree.map(lambda *m: m[0] if m[0] is True else jnp.stack(m), *masks)
    alike, others = refitted(scan, stacked(), stack)
    for key, value in alike.items():
        np.testing.assert_allclose(value, jnp.stack([p[key] for p in new]), rtol=1e-3, atol=1e-4)
    assert [row.path for row in others] == ["down[0], up[0]", "down[1], up[1]"]


def test_a_linear_branch_reaches_least_squares():
    """Hand-worked: x + x @ w with one kept weight of two equal inputs; the best value is the sum of both."""
    fn = lambda p, x: x + x @ p["w"]  # noqa: E731
    w = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    x = jnp.repeat(draw(3, 20, 1), 2, axis=1)
    masks = {"w": jnp.array([[True, True], [False, False]])}
    new = jp.refit(fn, {"w": w}, masks, [x], jp.Refit(steps=300, learning_rate=0.1))
    np.testing.assert_allclose(new["w"], [[4, 1], [0, 0]], atol=1e-2)


def test_targets_of_the_dense_model_are_what_is_minimized():
    """At strength 1 the error of the last window is that of the model."""
    params = listed(stacked())
    settings = jp.Refit(steps=12, learning_rate=0.03, dense_targets=1.0)
    new, rows = refitted(loop, params, magnitude(params), settings)
    streams = loop(new[:1], jnp.concatenate(batches()))
    energy = float(jnp.sum((loop(params, jnp.concatenate(batches())) - streams) ** 2))
    np.testing.assert_allclose(rows[-1].error * energy, error(loop, new, params), rtol=1e-3)


@pytest.mark.slow
def test_windows_of_a_model_without_branches_end_before_weights():
    params = {f"w{i}": draw(i, WIDTH, WIDTH) / 2 for i in range(3)}

    def fn(params, x):
        for w in params.values():
            x = jnp.tanh(x @ w)
        return x

    masks = magnitude(params)
    for window, paths in (("branch", ["w0, w1", "w2"]), (1, ["w0", "w1", "w2"]), (9, ["w0, w1, w2"])):
        settings = jp.Refit(steps=4, learning_rate=0.03, window=window)
        _, rows = refitted(fn, params, masks, settings)
        assert [row.path for row in rows] == paths
        assert all(row.error <= row.before for row in rows)


def test_no_window_gets_worse_whatever_the_optimizer_does():
    params = listed(stacked())
    masks = magnitude(params)
    for wild in (optax.sgd(1e3), optax.sgd(float("nan"))):
        new, rows = refitted(loop, params, masks, jp.Refit(steps=2, optimizer=wild))
        assert all(row.error == row.before for row in rows)
        jax.tree.map(np.testing.assert_array_equal, new, jp.apply_masks(params, masks))


@pytest.mark.slow
def test_only_norms_and_biases():
    params = listed(stacked())
    masks = magnitude(params)
    new, rows = refitted(loop, params, masks, jp.Refit(steps=12, learning_rate=0.03, weights=False))
    assert all(row.error < row.before for row in rows)
    for p, q, mask in zip(new, params, masks, strict=True):
        np.testing.assert_array_equal(p["up"], jnp.where(mask["up"], q["up"], 0))
        assert np.any(p["bias"]) and np.any(p["norm"] != 1)


@pytest.mark.slow
def test_bfloat16_stays_and_weights_of_two_windows_are_not_trained():
    params = {"shared": draw(0, WIDTH, WIDTH) / 2, "own": draw(1, WIDTH, WIDTH) / 2, "count": jnp.arange(3)}
    params = {k: v.astype(jnp.bfloat16) if k != "count" else v for k, v in params.items()}

    def fn(p, x):
        x = x.astype(jnp.bfloat16)
        x = x + jnp.tanh(x @ p["shared"]) @ p["own"]
        return x + jnp.tanh(x @ p["shared"])

    masks = {"shared": magnitude(params)["shared"], "own": magnitude(params)["own"], "count": True}
    new, rows = refitted(fn, params, masks)
    assert new["own"].dtype == jnp.bfloat16 and [row.path for row in rows] == ["own"]
    assert rows[0].error < rows[0].before
    np.testing.assert_array_equal(new["shared"], jnp.where(masks["shared"], params["shared"], 0))
    np.testing.assert_array_equal(new["count"], params["count"])


@pytest.mark.slow
def test_rows_of_weight_zero_have_no_part():
    params, rows = listed(stacked()), jnp.arange(40) < 25
    masks = magnitude(params)
    inputs = [(jnp.where(rows[:, None], x, jnp.nan), rows) for x in batches()]
    fn = lambda p, x, rows: loop(p, x)  # noqa: E731
    new = jp.refit(fn, params, masks, inputs, FAST, row_weights=lambda x, rows: rows)
    alone = jp.refit(loop, params, masks, [x[:25] for x in batches()], FAST)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), new, alone)


@pytest.mark.slow
def test_a_plan_of_units_is_refitted_and_then_shrunk():
    params = listed(stacked())
    groups = jp.find_groups(loop, params, batches()[0])
    plan = jp.plan_removal(groups, params, 0.5, budget="units")
    new, rows = refitted(loop, params, plan)
    small = plan.shrink(new)
    assert small[0]["up"].shape == (WIDTH, HIDDEN // 2)
    assert all(row.error < row.before for row in rows)
    for x in batches():
        np.testing.assert_allclose(
            jax.jit(plan.compact(loop))(small, x), jax.jit(loop)(new, x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`batches` say nothing about weights")
@pytest.mark.parametrize(("fn", "tree"), [(loop, listed), (scan, lambda p: p)], ids=["loop", "scan"])
def test_reconstruct_prunes_later_layers_on_refitted_ones(fn, tree):
    params = tree(stacked())
    where = jp.prunable(params, include=".*(up|down)")
    rows = []

    def pruned(**kwargs):
        return jp.reconstruct(
            fn, params, batches(), 0.5, method=jp.MaskOnly("magnitude"), where=where, **kwargs
        )

    plain, masks = pruned()
    new, _ = pruned(refine=(FAST,), on_layer=rows.append)
    after = jp.refit(fn, plain, masks, batches(), FAST, dense=params)
    # Masks by magnitude don't depend on the inputs: interleaved is the same as afterwards.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), new, after)
    kinds = [type(row).__name__ for row in rows]
    assert kinds == ["LayerResult", "LayerResult", "WindowResult"] * LAYERS
    assert error(fn, new, params) < 0.9 * error(fn, plain, params)


@pytest.mark.parametrize("dense_targets", [0.0, 1.0])
def test_statistics_of_a_branch_are_settled_before_it_is_trained(dense_targets):
    """The error that is told is that of the parameters that are returned: nothing changes after a window."""
    params = {"up": draw(0, WIDTH, HIDDEN) / 2, "down": draw(1, HIDDEN, WIDTH) / 3}
    params |= {"mean": draw(3, WIDTH) / 3, "var": 1 + jnp.abs(draw(4, WIDTH)), "scale": jnp.ones(WIDTH)}

    def net(params, x):
        y = jnp.tanh(x @ params["up"]) @ params["down"]
        return x + (y - params["mean"]) * lax.rsqrt(params["var"] + 1e-5) * params["scale"]

    rows = []
    refine = (jp.LeastSquares(), FAST)
    pruned, masks = jp.reconstruct(
        net, params, batches(), 0.4, refine=refine, dense_targets=dense_targets, on_layer=rows.append
    )
    assert jp.sparsity(pruned, masks) == 0.4
    assert not np.array_equal(pruned["mean"], params["mean"])
    x = jnp.concatenate(batches())
    left_out = float(jnp.sum((net(params, x) - x) ** 2))
    assert rows[-1].error < rows[-1].before
    np.testing.assert_allclose(error(net, pruned, params) / left_out, rows[-1].error, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: jp.Refit(steps=0), ValueError, "`steps` >= 1"),
        (lambda: jp.Refit(learning_rate=0.0), ValueError, "`learning_rate` > 0"),
        (lambda: jp.Refit(window="block"), ValueError, "`window` must be 'branch' or an int"),
        (lambda: jp.Refit(dense_targets=2.0), ValueError, r"`dense_targets` must be in \[0, 1\]"),
        (lambda: jp.Refit(optimizer=3), TypeError, "must be an optax optimizer"),
        (
            lambda: jp.reconstruct(None, {}, [], refine=(jp.Refit(), jp.LeastSquares())),
            ValueError,
            "one `Refit`, as its last item",
        ),
        (
            lambda: jp.refit(loop, {"w": jnp.ones(2)}, True, [jnp.ones(2)], dense={"w": jnp.ones(3)}),
            ValueError,
            "`dense` must have the shapes of `params`",
        ),
        (
            lambda: jp.refit(loop, {"w": jnp.ones(2)}, True, [jnp.ones(2)], where={"w": False}),
            ValueError,
            "there is nothing to train",
        ),
        (
            lambda: jp.refit(loop, {"w": jnp.zeros(2)}, {"w": jnp.zeros(2, bool)}, [jnp.ones(2)]),
            ValueError,
            "pass the dense ones as `dense`",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_window_weighs_its_outputs_as_its_last_product_does():
    """With Fisher scores of nearly one output only, that output comes nearer to the dense one."""
    keys = jax.random.split(jax.random.key(3), 3)
    params = {"up": jax.random.normal(keys[0], (8, 12)), "down": jax.random.normal(keys[1], (12, 8))}
    x = jax.random.normal(keys[2], (64, 8))

    def fn(p, x):
        return x + jnp.tanh(x @ p["up"]) @ p["down"]

    def error_of_first(scale):
        fisher = {"up": jnp.ones((8, 12)), "down": jnp.square(params["down"]) * scale}
        new, _ = jp.reconstruct(
            fn,
            params,
            [x],
            {"up": 0.6, "down": 0.0},
            method=jp.MaskOnly("magnitude"),
            fisher=fisher,
            refine=(jp.Refit(steps=256, learning_rate=0.05),),
        )
        return float(jnp.mean(jnp.square(fn(new, x) - fn(params, x))[:, 0]))

    assert error_of_first(jnp.where(jnp.arange(8) == 0, 1.0, 1e-6)) < 0.7 * error_of_first(jnp.ones(8))
