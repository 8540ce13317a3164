"""Linear maps in place of removed layers, against least squares by NumPy and models whose layers are linear."""

import branch_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

FN = models.language_model(models.pre_norm, lambda f: jax.checkpoint(jax.jit(f)))
RNG = np.random.default_rng(5)


def ids(rows=40, length=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 11, (rows, length)))


def planned(fn, params, without, *inputs):
    branches = jp.find_branches(fn, params, *inputs)
    assert set(without) <= set(branches.keys())
    score = {name: float(name not in without) for name in branches.keys()}  # noqa: SIM118
    return branches, jp.plan_layers(branches, params, number=len(without), score=score)


def error(fn, plan, small, params, *inputs):
    full = fn(params, *inputs)
    return float(
        jnp.linalg.norm(plan.compact(fn)(plan.shrink(small), *inputs) - full) / jnp.linalg.norm(full)
    )


def linear_models():
    """Models y = (x + M) + what is linear in M, with what lies between M and its weight."""
    w = {"f": {"up": (8, 32), "down": (32, 8), "bias": (8,)}, "g": (8, 8), "head": (8, 3)}
    scale = {"gain": (8,), "mean": (8,), "shift": (8,)}

    def through(tail):
        def fn(p, x):
            m = tail(p["f"], jnp.tanh(x @ p["f"]["up"]))
            x = 0 * x + m  # nothing else is in the stream, so that g is linear in M
            return (x + x @ p["g"]) @ p["head"]

        return fn

    def normed(p, h):
        return (h @ p["down"] - p["mean"]) * (p["gain"] + 2.0) / 1.5 + p["shift"]

    return {
        "product": (through(lambda p, h: h @ p["down"]), w),
        "bias": (through(lambda p, h: h @ p["down"] + p["bias"]), w),
        "transposed": (through(lambda p, h: h @ p["down"].T), {**w, "f": {**w["f"], "down": (8, 32)}}),
        "heads": (
            through(lambda p, h: jnp.einsum("bthd,hde->bte", h.reshape(*h.shape[:-1], 4, 8), p["down"])),
            {**w, "f": {**w["f"], "down": (4, 8, 8)}},
        ),
        "batch norm": (through(normed), {**w, "f": {**w["f"], **scale}}),
        "layer scale": (
            through(lambda p, h: jax.vmap(jax.vmap(lambda v: p["gain"] * (p["down"].T @ v)))(h)),
            {**w, "f": {**w["f"], **scale}},
        ),
        "channels first": (
            through(lambda p, h: jnp.moveaxis(jnp.einsum("bth,he->ebt", h, p["down"]) * 2, 0, -1)),
            w,
        ),
    }


@pytest.mark.parametrize("case", linear_models())
def test_a_layer_that_is_linear_in_what_is_added_before_it_is_recovered(case):
    fn, shapes = linear_models()[case]
    params = models.arrays(shapes)
    x = jnp.asarray(RNG.normal(size=(20, 5, 8)), jnp.float32)
    branches, plan = planned(fn, params, ["g"], x)
    batches = [x[:12], x[12:18], x[18:]]  # of several sizes
    for sequential in (True, False):
        replaced = jp.replace_layers(branches, plan, params, batches, damping=0.0, sequential=sequential)
        assert error(fn, plan, params, params, x) > 0.1
        assert error(fn, plan, replaced.params, params, x) < 1e-5
        ((removed, path, before, after, reason),) = replaced.runs
        assert (removed, path, reason) == (("g",), "f/down", "")
        assert before > 0.1 and after < 1e-3


@pytest.mark.parametrize("normalize", [True, False])
def test_the_map_is_that_of_least_squares(normalize):
    params, x = models.listed(3), ids(60)
    branches, plan = planned(FN, params, ["layers/1/attn", "layers/1/mlp"], x)
    replaced = jp.replace_layers(branches, plan, params, [x[:30], x[30:]], damping=0.0, normalize=normalize)
    p = params["layers"]
    stream = models.pre_norm(p[0], params["embedding"][x], ("mlp",))
    m = np.asarray(models.mlp(p[0]["mlp"], models.norm(p[0]["ln_2"], stream)), np.float64).reshape(-1, 8)
    target = np.asarray(models.pre_norm(p[1], models.pre_norm(p[0], params["embedding"][x])), np.float64)
    target, y = target.reshape(-1, 8), np.asarray(stream, np.float64).reshape(-1, 8)
    weight = 1 / np.linalg.norm(target, axis=-1, keepdims=True) if normalize else np.ones((len(target), 1))
    left = np.concatenate([m, np.ones((len(m), 1))], 1) * weight
    found = np.linalg.lstsq(left, (target - y) * weight, rcond=None)[0]
    old, new = p[0]["mlp"], replaced.params["layers"][0]["mlp"]
    np.testing.assert_allclose(new["down"], np.asarray(old["down"]) @ found[:-1], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(
        new["down_bias"], np.asarray(old["down_bias"]) @ found[:-1] + found[-1], rtol=2e-3, atol=2e-3
    )
    left_over = np.linalg.norm((target - y) * weight - left @ found) / np.linalg.norm(target * weight)
    np.testing.assert_allclose(replaced.runs[0].after, left_over, rtol=1e-3)
    others = {**replaced.params, "layers": [params["layers"][0], *replaced.params["layers"][1:]]}
    jax.tree.map(np.testing.assert_array_equal, others, params)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("layer", [models.pre_norm, models.post_norm, models.parallel])
@pytest.mark.parametrize("without", [("layers/1/attn", "layers/1/mlp"), ("layers/1/mlp", "layers/3/mlp")])
def test_the_error_falls_on_the_batches_and_on_others(layer, without, sequential):
    fn = models.language_model(layer)
    params, x, other = models.listed(4), ids(64), ids(64, seed=1)
    branches, plan = planned(fn, params, without, x)
    replaced = jp.replace_layers(branches, plan, params, [x], sequential=sequential)
    for inputs in (x, other):
        assert error(fn, plan, replaced.params, params, inputs) < error(fn, plan, params, params, inputs)
    assert all(run.after <= run.before for run in replaced.runs if run.path)
    assert "folded into" in str(replaced)


def test_strong_damping_leaves_plain_removal():
    params, x = models.listed(3), ids()
    branches, plan = planned(FN, params, ["layers/1/mlp"], x)
    replaced = jp.replace_layers(branches, plan, params, [x], damping=1e9)
    np.testing.assert_allclose(
        replaced.params["layers"][1]["attn"]["o"], params["layers"][1]["attn"]["o"], atol=1e-6
    )


def test_dtypes_are_kept_and_the_embedding_takes_a_map():
    params, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), models.listed(2)), ids()
    branches, plan = planned(FN, params, ["layers/0/attn", "layers/0/mlp"], x)
    replaced = jp.replace_layers(branches, plan, params, [x])
    assert replaced.runs[0].path == "embedding"
    assert {leaf.dtype for leaf in jax.tree.leaves(replaced.params)} == {jnp.dtype(jnp.bfloat16)}


def test_mistakes_are_told():
    params, x = models.listed(3), ids(4)
    branches, plan = planned(FN, params, ["layers/1/mlp"], x)
    with pytest.raises(ValueError, match="`batches` is empty"):
        jp.replace_layers(branches, plan, params, [])
    with pytest.raises(ValueError, match="`damping` must not be negative, got -1"):
        jp.replace_layers(branches, plan, params, [x], damping=-1)
    with pytest.raises(ValueError, match="must be what `find_branches` was given"):
        jp.replace_layers(branches, plan, models.listed(2), [x])
    with pytest.raises(TypeError, match="`params` must be arrays, got traced ones"):
        jax.jit(lambda p: jp.replace_layers(branches, plan, p, [x]).params)(params)
    broken = {**params, "embedding": params["embedding"].at[:].set(jnp.inf)}
    with pytest.raises(ValueError, match="is not finite"):
        jp.replace_layers(branches, plan, broken, [x])
    with pytest.raises(TypeError, match="`plan` must be a plan of `plan_layers`"):
        jp.replace_layers(branches, None, params, [x])

    def shared(p, x):
        for _ in range(3):
            x = x + jnp.tanh(x @ p["f"])
        return (x + jnp.tanh(x @ p["g"])) @ p["head"]

    weights = models.arrays({"f": (8, 8), "g": (8, 8), "head": (8, 2)})
    inputs = jnp.ones((3, 8))
    branches, plan = planned(shared, weights, ["g"], inputs)
    with pytest.raises(ValueError, match="no removed layer has a weight before it"):
        jp.replace_layers(branches, plan, weights, [inputs])
