"""Scores against hand-worked values; one row a score in the table of shared properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.draws import uniforms
from jaxprune.params import is_float_array


def loss_fn(params, batch):
    """Every float leaf matters, and not linearly; batch: (samples,)."""
    weights = [w.astype(jnp.float32) for w in jax.tree.leaves(params) if is_float_array(w)]
    return jnp.mean(sum(jnp.sum(jnp.sin(w * (1 + i))) for i, w in enumerate(weights)) * batch)


def outputs(params, batch):
    return [jnp.sum(w) * batch for w in jax.tree.leaves(params) if is_float_array(w)]


BATCHES = (jnp.array([1.0, -0.5, 2.0]), jnp.array([0.3]))

SCORES = {
    "magnitude": jp.scores.magnitude,
    "random": lambda params: jp.scores.random(params, jax.random.key(0)),
    "l1_norm": lambda params: jp.scores.l1_norm(params, jp.Channels()),
    "l2_norm": lambda params: jp.scores.l2_norm(params, jp.Block((2, 2))),
    "snip": lambda params: jp.scores.snip(loss_fn, params, *BATCHES),
    "grasp": lambda params: jp.scores.grasp(loss_fn, params, *BATCHES),
    "synflow": lambda params: jp.scores.synflow(outputs, params, BATCHES[0]),
    "taylor": lambda params: jp.scores.taylor(loss_fn, params, *BATCHES, structure=jp.Block((2, 3))),
    "fisher": lambda params: jp.scores.fisher(loss_fn, params, *BATCHES, chunk=2),
    "lamp": jp.scores.lamp,
    "fpgm": jp.scores.fpgm,
    "normalized": lambda params: jp.scores.normalize(jp.scores.magnitude(params), "l2"),
}


def params_of(dtype=jnp.float32):
    return {
        "conv": {
            "kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 4), dtype),
            "bias": jnp.zeros(4, dtype),
        },
        "odd": [jnp.ones((1, 1), dtype), jnp.zeros((0, 3), dtype), jnp.ones((), dtype)],
        "count": jnp.arange(3),
        "activation": jax.nn.relu,
    }


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", SCORES)
def test_shared_properties(name, dtype):
    params = params_of(dtype)
    scores = SCORES[name](params)
    assert jax.tree.structure(scores) == jax.tree.structure(params)
    arrays = {k: v for k, v in params.items() if k != "activation"}
    eager = SCORES[name](arrays)
    for w, s in zip(jax.tree.leaves(arrays), jax.tree.leaves(eager), strict=True):
        assert s.shape == w.shape
        if jnp.issubdtype(w.dtype, jnp.floating):
            assert s.dtype in (jnp.float32, w.dtype) and bool(jnp.isfinite(s).all())
    jitted = jax.jit(SCORES[name])(arrays)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-5
        ),
        eager,
        jitted,
    )
    vmapped = jax.vmap(SCORES[name])(jax.tree.map(lambda x: jnp.stack([x, x]), arrays))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a[1], np.float32), np.asarray(b, np.float32), rtol=1e-5
        ),
        vmapped,
        eager,
    )
    assert eager["count"].tolist() == [0, 1, 2], "what is no weight passes through"


def test_magnitude_keeps_bfloat16():
    assert jp.scores.magnitude({"w": jnp.array([-1.5], jnp.bfloat16)})["w"].dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    "structure", [jp.Channels(), jp.Channels(0), jp.Block((2, 3)), jp.Layers(), jp.Unstructured()]
)
@pytest.mark.parametrize(("norm", "order"), [(jp.scores.l1_norm, 1), (jp.scores.l2_norm, 2)])
def test_unit_norms_against_float64(norm, order, structure):
    w = np.asarray(jax.random.normal(jax.random.key(1), (5, 7)))
    got = np.asarray(norm({"w": jnp.asarray(w)}, structure)["w"])
    want = np.zeros_like(w, np.float64)
    rows, columns = {
        jp.Channels(): (5, 1), jp.Channels(0): (1, 7), jp.Block((2, 3)): (2, 3), jp.Layers(): (5, 7)
    }.get(structure, (1, 1))  # fmt: skip
    for i in range(0, 5, rows):
        for j in range(0, 7, columns):
            unit = w[i : i + rows, j : j + columns].astype(np.float64)
            want[i : i + rows, j : j + columns] = (np.abs(unit) ** order).sum() ** (1 / order)
    np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.slow
def test_l1_and_mean_magnitude_rank_channels_of_a_layer_alike():
    params = {"w": jax.random.normal(jax.random.key(2), (9, 12))}
    by_norm = jp.make_masks(jp.scores.l1_norm(params, jp.Channels()), 0.5, structure=jp.Channels())
    by_mean = jp.make_masks(jp.scores.magnitude(params), 0.5, structure=jp.Channels())
    np.testing.assert_array_equal(by_norm["w"], by_mean["w"])


def test_random_leaves_differ_and_follow_the_key():
    params = {"a": jnp.zeros((4, 4)), "c": jnp.zeros((4, 4))}
    first, again = (jp.scores.random(params, jax.random.key(1)) for _ in range(2))
    assert bool((first["a"] == again["a"]).all()) and not bool((first["a"] == first["c"]).any())
    assert not bool((first["a"] == jp.scores.random(params, jax.random.key(2))["a"]).any())


@pytest.mark.parametrize(("by", "want"), [("mean", 3.0), ("max", 5.0), ("sum", 9.0), ("l2", 35**0.5)])
def test_normalize_divides_by_a_size_of_the_leaf(by, want):
    scores = {"w": jnp.array([1.0, -3.0, 5.0]), "huge": jnp.array([1e38, -3e38]), "zero": jnp.zeros(3)}
    out = jp.scores.normalize(scores, by)
    np.testing.assert_allclose(out["w"], np.array([1.0, -3.0, 5.0]) / want, rtol=1e-6)
    assert bool(jnp.isfinite(out["huge"]).all()) and out["zero"].tolist() == [0, 0, 0]


def test_normalize_names_what_it_takes():
    with pytest.raises(ValueError, match="`by` must be one of 'mean', 'max', 'l2', 'sum', got 'median'"):
        jp.scores.normalize({"w": jnp.ones(2)}, "median")


def test_draws_made_together_are_those_of_each_key_alone():
    shapes = [(3, 5), (7,), (), (0, 4), (3, 5), (130, 130), (2, 1, 2), (130, 130)]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    together = jax.jit(lambda keys: uniforms(keys, shapes))(keys)
    for key, shape, drawn in zip(keys, shapes, together, strict=True):
        assert drawn.shape == shape
        np.testing.assert_array_equal(drawn, jax.random.uniform(key, shape))
