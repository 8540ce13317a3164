"""Statistics that are parameters, such as BatchNorm's, follow the activations of the model that is pruned."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import jaxprune as jp
from jaxprune.calibration.engine.model import open_model
from jaxprune.jaxprs.normalizations import normalizations
from jaxprune.params import flatten_with_paths

EPSILON = 1e-3


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def statistics(width=6):
    """A normalization whose statistics are not those of any batch."""
    return {
        "mean": 0.3 * draw(10, width),
        "variance": 0.5 + jax.random.uniform(jax.random.key(11), (width,)),
        "scale": 1 + 0.1 * draw(12, width),
        "shift": 0.1 * draw(13, width),
    }


def channels_first(p):
    return {name: value[:, None, None] for name, value in p.items()}


def inverse(p):
    return p["scale"] * lax.rsqrt(p["variance"] + EPSILON)


# The same normalization in the orders in which it is written; all but the last are over the last axis.
FORMS = {
    "root": lambda x, p: p["scale"] * (x - p["mean"]) / jnp.sqrt(p["variance"] + EPSILON) + p["shift"],
    "inverse": lambda x, p: (x - p["mean"]) * inverse(p) + p["shift"],
    "standardize": lambda x, p: (
        jax.nn.standardize(x, mean=p["mean"], variance=p["variance"], epsilon=EPSILON) * p["scale"]
    ),
    "power": lambda x, p: (x - p["mean"]) * (p["variance"] + EPSILON) ** -0.5,
    "floor": lambda x, p: (x - p["mean"]) / jnp.sqrt(jnp.maximum(p["variance"], EPSILON)),
    "beside the root": lambda x, p: (x - p["mean"]) / (jnp.sqrt(p["variance"]) + EPSILON),
    "folded": lambda x, p: x * inverse(p) + (p["shift"] - p["mean"] * inverse(p)),
    "folded, no shift": lambda x, p: x * inverse(p) - p["mean"] * inverse(p),
    "jitted": lambda x, p: jax.jit(FORMS["root"])(x, p),
    "mapped": lambda x, p: jax.vmap(FORMS["root"], (0, None))(x, p),
    "of each channel": lambda x, p: jax.vmap(FORMS["root"], -1, -1)(x, p),
    "cast": lambda x, p: FORMS["inverse"](
        x.astype(jnp.float32), {k: v.astype(jnp.float32) for k, v in p.items()}
    ).astype(x.dtype),
    "channels first": lambda x, p: jnp.moveaxis(
        FORMS["root"](jnp.moveaxis(x, -1, 1), channels_first(p)), 1, -1
    ),
}


def found(fn, params, x):
    model = open_model(fn, params, [x], None, None)
    norms = normalizations(model.program, [value.shape for value in model.values])
    return [(model.paths[norm.mean.leaf], model.paths[norm.variance.leaf]) for norm in norms]


def convolution(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def network(form):
    def fn(params, x):
        y = jax.nn.relu(form(convolution(x, params["w"]), params["norm"]))
        return y.mean((1, 2)) @ params["out"]

    return fn


PARAMS = {"w": draw(0, 3, 3, 4, 6), "norm": statistics(), "out": draw(1, 6, 3)}
IMAGES = [0.7 + draw(20 + i, 4, 4, 4, 4) for i in range(2)]


@pytest.mark.parametrize("form", FORMS)
def test_a_normalization_is_found_in_every_order_of_its_operations(form):
    assert found(network(FORMS[form]), PARAMS, IMAGES[0]) == [("norm/mean", "norm/variance")]


def linen_model():
    model = linen.Sequential([linen.Conv(6, (3, 3)), linen.BatchNorm(use_running_average=True), linen.relu])
    return model.apply, model.init(jax.random.key(0), IMAGES[0])


def nnx_model():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Conv(4, 6, (3, 3), rngs=rngs), nnx.BatchNorm(6, rngs=rngs), nnx.relu)
    model.eval()
    definition, state = nnx.split(model)
    return lambda state, x: nnx.merge(definition, state)(x), state


def haiku_model():
    def forward(x, train=False):
        return jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(6, 3)(x), train))

    model = hk.transform_with_state(forward)
    params, state = model.init(jax.random.key(0), IMAGES[0], True)
    _, state = model.apply(params, state, None, IMAGES[0], True)
    return lambda variables, x: model.apply(*variables, None, x)[0], (params, state)


def equinox_model(mode):
    class Model(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state):
            return self.norm(self.conv(x), state)[0]

    def build():
        norm = eqx.nn.BatchNorm(6, "batch", mode=mode, inference=True)
        return Model(eqx.nn.Conv2d(4, 6, 3, key=jax.random.key(0)), norm)

    variables, static = eqx.partition(eqx.nn.make_with_state(build)(), eqx.is_array)

    def fn(variables, x):
        model, state = eqx.combine(variables, static)
        return jax.vmap(model, in_axes=(0, None), axis_name="batch")(jnp.moveaxis(x, -1, 1), state)

    def moved(x):  # the counter of updates, and what is not a kernel
        return x + 3 if x.dtype == jnp.int32 else x + 0.5 if x.shape == (6,) else x

    return fn, jax.tree.map(moved, variables)


MODELS = {
    "linen": linen_model,
    "nnx": nnx_model,
    "haiku": haiku_model,
    "equinox, batch": lambda: equinox_model("batch"),
    "equinox, ema": lambda: equinox_model("ema"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_statistics_of_each_framework_are_found(name):
    fn, params = MODELS[name]()
    ((mean, variance),) = found(fn, params, IMAGES[0])
    assert mean != variance and (name.startswith("equinox") or ("mean" in mean and "var" in variance))


OTHERS = {
    "layer norm": lambda x, p: jax.nn.standardize(x) * p["scale"] + p["shift"],
    "layer norm minus a parameter": lambda x, p: jax.nn.standardize(x - p["mean"]) * p["scale"],
    "root mean square": lambda x, p: x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON) * p["scale"],
    "normalized weight": lambda x, p: (x - p["mean"]) * lax.rsqrt(jnp.sum(p["scale"] ** 2) + EPSILON),
    "no mean": lambda x, p: x * inverse(p) + p["shift"],
    "affine": lambda x, p: (x - p["mean"]) * p["scale"] + p["shift"],
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_computes_no_difference_over_a_root_of_parameters_is_no_normalization(other):
    assert found(network(OTHERS[other]), PARAMS, IMAGES[0]) == []


def normalized(params, batches):
    """Mean and variance of each normalized channel over all batches, in float64."""
    w = np.asarray(params["w"], np.float64)
    x = np.concatenate([np.asarray(x, np.float64) for x in batches])
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    n, h = x.shape[0], x.shape[1]
    parts = [padded[:, i : i + h, j : j + h] @ w[i, j] for i in range(3) for j in range(3)]
    y = np.sum(parts, axis=0).reshape(n * h * h, -1)
    p = {name: np.asarray(value, np.float64) for name, value in params["norm"].items()}
    y = (y - p["mean"]) / np.sqrt(p["variance"])
    return y.mean(0), y.var(0)


@pytest.mark.parametrize("form", ["folded", "channels first"])
def test_normalized_channels_keep_their_mean_and_variance(form):
    fn = network(FORMS[form])
    pruned, _ = jp.reconstruct(fn, PARAMS, IMAGES, 0.7, jp.Unstructured(), jp.MaskOnly("magnitude"))
    assert not np.allclose(pruned["norm"]["variance"], PARAMS["norm"]["variance"], rtol=0.01)
    for new, old in zip(normalized(pruned, IMAGES), normalized(PARAMS, IMAGES), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)


def is_same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))


def by_path(tree):
    return dict(zip(*flatten_with_paths(tree)[:2], strict=True))


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", MODELS)
def test_statistics_move_with_pruned_weights(name):
    fn, params = MODELS[name]()
    pruned, _ = jp.reconstruct(fn, params, IMAGES, 0.7, method=jp.MaskOnly("magnitude"))
    (pair,) = found(fn, params, IMAGES[0])
    old, new = by_path(params), by_path(pruned)
    for path in pair:
        assert not np.allclose(new[path], old[path], rtol=0.01) and new[path].dtype == old[path].dtype
    left = {path: old[path] if path in pair else leaf for path, leaf in new.items()}
    left = jax.tree.unflatten(jax.tree.structure(params), left.values())
    x = jnp.concatenate(IMAGES)
    reference, got, before = (np.asarray(fn(tree, x)) for tree in (params, pruned, left))
    assert np.square(got - reference).mean() < np.square(before - reference).mean()


def test_nothing_moves_if_nothing_is_pruned_or_it_is_not_wanted():
    fn, params = linen_model()
    method = jp.MaskOnly("magnitude")
    dense, _ = jp.reconstruct(fn, params, IMAGES, 0.0, method=method)
    assert is_same(dense, params)
    pruned, _ = jp.reconstruct(fn, params, IMAGES, 0.7, method=method, statistics=False)
    assert is_same(pruned["batch_stats"], params["batch_stats"])


@pytest.mark.slow
def test_haikus_average_takes_its_sum_along():
    fn, params = haiku_model()
    pruned, _ = jp.reconstruct(fn, params, IMAGES, 0.7, method=jp.MaskOnly("magnitude"))
    for name in ("mean", "var"):
        old, new = (tree[1][f"batch_norm/~/{name}_ema"] for tree in (params, pruned))
        share = float(jnp.linalg.norm(old["hidden"]) / jnp.linalg.norm(old["average"]))
        np.testing.assert_allclose(new["hidden"], share * new["average"], rtol=1e-4)


def dense_network(params, x):
    for w, norm in params["layers"]:
        x = jnp.tanh(FORMS["root"](x @ w, norm))
    return x @ params["out"]


def dense_params(layers=2):
    widths = [5, *[6] * layers]
    pairs = [(draw(30 + i, widths[i], 6), statistics()) for i in range(layers)]
    return {"layers": pairs, "out": draw(40, 6, 2)}


@pytest.mark.slow
def test_rows_without_weight_do_not_count_and_may_be_nan():
    params, x = dense_params(), draw(2, 24, 5)
    padded = jnp.concatenate([x, jnp.full((8, 5), jnp.nan)])
    plain, _ = jp.reconstruct(dense_network, params, [x], 0.5)
    weighted, _ = jp.reconstruct(
        dense_network, params, [padded], 0.5, row_weights=lambda x: (jnp.arange(32) < 24).astype(jnp.float32)
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(weighted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_statistics_of_the_inputs_and_shared_ones_stay():
    shared = statistics()

    def fn(params, x):
        x = FORMS["root"](x, params["inputs"])
        for w in params["weights"]:
            x = FORMS["root"](x @ w, params["shared"])
        return x

    params = {"inputs": statistics(5), "weights": [draw(0, 5, 6), draw(1, 6, 6)], "shared": shared}
    pruned, _ = jp.reconstruct(fn, params, [draw(2, 16, 5)], 0.5)
    assert is_same(pruned["inputs"], params["inputs"]) and is_same(pruned["shared"], shared)


@pytest.mark.slow
def test_stacked_layers_get_the_statistics_of_the_list_of_layers():
    params, x = dense_params(3), draw(2, 32, 5)
    first, *rest = params["layers"]
    stacked = {"first": first, "rest": jax.tree.map(lambda *x: jnp.stack(x), *rest), "out": params["out"]}

    def scanned(params, x):
        w, norm = params["first"]
        x = jnp.tanh(FORMS["root"](x @ w, norm))

        def layer(x, layer):
            return jnp.tanh(FORMS["root"](x @ layer[0], layer[1])), None

        return lax.scan(layer, x, params["rest"])[0] @ params["out"]

    one, _ = jp.reconstruct(dense_network, params, [x], 0.5)
    where = {"first": (True, False), "rest": (True, False), "out": True}
    other, _ = jp.reconstruct(scanned, stacked, [x], 0.5, where=where)
    for name in ("mean", "variance"):
        listed = jnp.stack([norm[name] for _, norm in one["layers"][1:]])
        np.testing.assert_allclose(other["rest"][1][name], listed, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [1, 6])
def test_bfloat16_and_a_single_channel_have_statistics(width):
    params = {"w": draw(0, 5, width), "norm": statistics(width), "out": draw(1, width, 2)}
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)

    def fn(p, x):
        return FORMS["root"](x @ p["w"], p["norm"]) @ p["out"]

    pruned, _ = jp.reconstruct(fn, params, [draw(2, 32, 5).astype(jnp.bfloat16)], 0.6)
    for name in ("mean", "variance"):
        new = pruned["norm"][name]
        assert new.dtype == jnp.bfloat16 and bool(jnp.isfinite(new.astype(jnp.float32)).all())
    assert not is_same(pruned["norm"], params["norm"])


def test_a_channel_without_weights_has_statistics_zero():
    params = dense_params()
    shares = jax.tree.map(lambda x: 0.0, params)
    w = params["layers"][0][0].at[:, 2].set(1e-3)
    params["layers"][0] = (w, params["layers"][0][1])
    shares["layers"][0] = (0.5, shares["layers"][0][1])
    pruned, _ = jp.reconstruct(
        dense_network, params, [draw(2, 64, 5)], shares, method=jp.MaskOnly("magnitude")
    )
    norm = pruned["layers"][0][1]
    assert norm["mean"][2] == 0 and norm["variance"][2] == 0
    assert bool(jnp.isfinite(dense_network(pruned, draw(3, 8, 5))).all())


@pytest.mark.slow
def test_kept_units_keep_their_normalized_mean_and_variance_when_others_are_removed():
    params, x = dense_params(), draw(2, 64, 5)
    plan = jp.plan_removal(jp.find_groups(dense_network, params, x), params, 0.5)
    kept = np.asarray(plan.mask("layers/1/1/mean"))

    def of_kept(params):
        """Mean and variance of the second layer's normalized channels, and its statistics."""
        (w0, norm0), (w1, norm) = params["layers"]
        y = np.asarray(jnp.tanh(FORMS["root"](x @ w0, norm0)) @ w1)[:, kept]
        mean, variance = (np.asarray(norm[name])[kept] for name in ("mean", "variance"))
        y = (y - mean) / np.sqrt(variance)
        return y.mean(0), y.var(0), mean, variance

    dense = of_kept(params)
    new = of_kept(jp.compensate(dense_network, params, plan, [x]))
    np.testing.assert_allclose(new[0], dense[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(new[1], dense[1], rtol=1e-3)
    assert not np.allclose(new[3], dense[3], rtol=0.01)
    still = of_kept(jp.compensate(dense_network, params, plan, [x], statistics=False))
    assert is_same(still[2:], dense[2:])
