"""Pruning at initialization, round by round in one loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp


def params_of(seed=0, dtype=jnp.float32, widths=(10, 16, 4)):
    keys = jax.random.split(jax.random.key(seed), len(widths))
    weights = [jax.random.normal(k, s, dtype) for k, s in zip(keys, itertools.pairwise(widths), strict=False)]
    return {"w": weights, "bias": jnp.zeros(4, dtype)}


def net(params, x):
    for w in params["w"][:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params["w"][-1] + params["bias"]


def synflow(params):
    return jp.scores.synflow(net, params, jax.ShapeDtypeStruct((1, 10), jnp.float32))


def kept(masks):
    return [int(np.asarray(m).sum()) for m in masks["w"]]


def by_loop(score, params, sparsity, rounds, **options):
    """The same with `make_masks` in a Python loop."""
    masks = jax.tree.map(lambda _: True, params)
    for r in range(1, rounds + 1):
        share = 1 - (1 - sparsity) ** (r / rounds)
        masks = jp.make_masks(score(jp.apply_masks(params, masks)), share, prior=masks, **options)
    return masks


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"scope": "local", "structure": jp.Channels(), "minimum": 1}], ids=["global", "local"]
)
def test_same_as_a_loop_of_make_masks(options):
    params = params_of()
    got = jp.prune_at_init(synflow, params, 0.8, 4, **options)
    want = by_loop(synflow, params, 0.8, 4, **options)
    assert got["bias"] is True
    if not options:
        assert 224 - sum(kept(got)) == round(0.8 * 224)
    for a, b in zip(got["w"], want["w"], strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_round_is_pruning_in_one_shot():
    def loss_fn(params, x):
        return jnp.mean(net(params, x) ** 2)

    params, x = params_of(), jnp.ones((3, 10))
    got = jp.prune_at_init(lambda p: jp.scores.snip(loss_fn, p, x), params, 0.7, rounds=1)
    want = jp.make_masks(jp.scores.snip(loss_fn, params, x), 0.7)
    for a, b in zip(got["w"], want["w"], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_synflow_leaves_no_layer_empty_where_magnitude_and_one_shot_do():
    """The theorem's claim: at maximal critical compression one weight a layer is left, and a path through them."""
    params = params_of(widths=(10, 30, 5, 4))
    params["w"][1] = params["w"][1] * 0.05  # a layer of small weights, which magnitude removes as a whole
    sparsity = 1 - 5 / 470
    assert 0 in kept(jp.make_masks(jp.scores.magnitude(params), sparsity))
    masks = jp.prune_at_init(synflow, params, sparsity, rounds=100)
    assert sum(kept(masks)) == 5 and min(kept(masks)) >= 1
    ones = jp.apply_masks(jax.tree.map(jnp.abs, params), masks)
    assert float(net(ones, jnp.ones((1, 10))).sum()) > 0


@pytest.mark.slow
def test_vmap_over_seeds_with_a_traced_sparsity_bfloat16_and_sparsity_0():
    prune = jax.jit(lambda params, sparsity: jp.prune_at_init(synflow, params, sparsity, 3))
    seeds = [params_of(0), params_of(1)]
    together = jax.jit(jax.vmap(prune, in_axes=(0, None)))(jax.tree.map(lambda *x: jnp.stack(x), *seeds), 0.9)
    for n, params in enumerate(seeds):
        alone = prune(params, 0.9)
        assert sum(kept(alone)) == 22
        for a, b in zip(alone["w"], together["w"], strict=True):
            np.testing.assert_array_equal(a, b[n])
    assert sum(kept(prune(seeds[0], 0.0))) == 224
    assert sum(kept(prune(params_of(0, jnp.bfloat16), 0.9))) == 22


@pytest.mark.slow
def test_allocation_key_and_leaves_that_are_no_weights():
    params = {**params_of(), "steps": jnp.arange(3), "activation": jax.nn.relu}
    shares = {"w": [0.5, 0.25], "bias": 0.0, "steps": 0.0, "activation": 0.0}
    masks = jp.prune_at_init(jp.scores.random, params, shares, 3, key=jax.random.key(0))
    assert kept(masks) == [80, 48] and masks["steps"] is True


@pytest.mark.slow
def test_pattern_is_whole_at_the_end():
    params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
    mask = jp.prune_at_init(jp.scores.magnitude, params, 0.5, 3, structure=jp.NM(2, 4))["w"]
    assert bool((mask.reshape(2, 4, 4).sum(1) == 2).all())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_parameters_give_the_same_masks(kind):
    params = {"w": jax.random.normal(jax.random.key(0), (8, 16))}
    score = lambda p: jp.scores.synflow(lambda q, x: jnp.sum(q["w"] ** 2) * x, p, jnp.ones(1))  # noqa: E731
    want = jp.prune_at_init(score, params, 0.9, 3)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        got = jp.prune_at_init(score, jax.device_put(params, NamedSharding(mesh, P("a", "b"))), 0.9, 3)
    np.testing.assert_array_equal(got["w"], want["w"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "`rounds` must be a whole number of at least 1, got 0"),
        ({"rounds": True}, "`rounds` must be a whole number"),
        ({"sparsity": 95}, "It is a fraction: pass 0.95"),
        ({"scope": "all"}, "`scope` must be"),
        ({"minimum": 40}, "`minimum` keeps 80 of 224 units in all, but `sparsity` prunes 202"),
        ({"score": jp.scores.random}, "takes a `key`"),
        ({"score": lambda p: jax.tree.map(lambda w: w / 0, p)}, "NaN or -inf in round 1 of 5"),
        ({"structure": jp.NM(1, 2)}, "`sparsity` must be 0.5 for NM"),
    ],
)
def test_bad_input_is_named(arguments, message):
    given = {"score": synflow, "params": params_of(), "sparsity": 0.9, "rounds": 5, **arguments}
    with pytest.raises(ValueError, match=message):
        jp.prune_at_init(given.pop("score"), given.pop("params"), given.pop("sparsity"), **given)
