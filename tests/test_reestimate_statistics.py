"""New means and variances equal those that NumPy computes in float64 from all batches, in every framework."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxprune as jp

BATCHES = [jax.random.normal(jax.random.key(i), (16, 4)) * (i + 1) + i for i in range(3)]


def close(got, wanted, rtol=1e-5):
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=rtol, atol=1e-6)


def reference(norm_inputs):
    """Mean and variance over the rows of all batches, float64."""
    rows = np.concatenate([np.asarray(x, np.float64) for x in norm_inputs])
    return rows.mean(0), rows.var(0)


class Net(nn.Module):
    train: bool
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x):
        for width in (6, 5):
            x = nn.Dense(width)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not self.train, momentum=self.momentum)(x))
        return nn.Dense(2)(x)


def linen(momentum=0.99):
    variables = Net(False).init(jax.random.key(9), BATCHES[0])

    def train_fn(variables, x):
        return Net(True, momentum).apply(variables, x, mutable=["batch_stats"])

    return train_fn, variables


def two_layers(dense, norm):
    """The inputs of both norms in training mode, in float64."""
    first, second = [], []
    for x in BATCHES:
        h = np.asarray(x, np.float64) @ np.asarray(dense[0][0], np.float64) + np.asarray(dense[0][1])
        first.append(h)
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + norm) if norm else h
        h = np.maximum(h, 0)
        second.append(h @ np.asarray(dense[1][0], np.float64) + np.asarray(dense[1][1]))
    return first, second


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("momentum", [0.9, 0.0, 0.999])
def test_linen_equals_float64_whatever_the_momentum_and_the_old_values(momentum):
    train_fn, variables = linen(momentum)
    old = jax.tree.map(lambda x: x + 17, variables["batch_stats"])
    new = jp.reestimate_statistics(train_fn, {**variables, "batch_stats": old}, BATCHES)
    p = variables["params"]
    inputs = two_layers([(p[n]["kernel"], p[n]["bias"]) for n in ("Dense_0", "Dense_1")], 1e-5)
    for name, rows in zip(("BatchNorm_0", "BatchNorm_1"), inputs, strict=True):
        mean, var = reference(rows)
        close(new["batch_stats"][name]["mean"], mean)
        close(new["batch_stats"][name]["var"], var)
    jax.tree.map(np.testing.assert_array_equal, new["params"], p)


def test_two_batches_worked_by_hand():
    """Batches 1, 3 and 5, 7: means 2 and 6, variances 1 and 1, so mean 4 and variance 1 + 4."""
    model = nn.BatchNorm(use_running_average=False)
    variables = model.init(jax.random.key(0), jnp.ones((2, 1)))
    batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
    new = jp.reestimate_statistics(
        lambda v, x: model.apply(v, x, mutable=["batch_stats"]), variables, batches
    )
    assert (float(new["batch_stats"]["mean"][0]), float(new["batch_stats"]["var"][0])) == (4, 5)


class Module(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.up(x)))


def test_an_nnx_module_is_updated_in_place():
    module = Module(nnx.Rngs(0))
    module.eval()
    before = jax.tree.map(jnp.array, nnx.split(module, nnx.BatchStat, ...)[2])
    assert jp.reestimate_statistics(Module.__call__, module, BATCHES) is module
    mean, var = reference([x @ module.up.kernel[...] + module.up.bias[...] for x in BATCHES])
    close(module.norm.mean[...], mean)
    close(module.norm.var[...], var)
    assert module.norm.use_running_average
    after = nnx.split(module, nnx.BatchStat, ...)[2]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a == b).all()


def equinox_net(mode):
    class EqxNet(eqx.Module):
        up: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        down: eqx.nn.Linear
        last: eqx.nn.BatchNorm

        def __init__(self, key):
            self.up, self.down = eqx.nn.Linear(4, 6, key=key), eqx.nn.Linear(6, 5, key=key)
            self.norm = eqx.nn.BatchNorm(6, axis_name="batch", mode=mode)
            self.last = eqx.nn.BatchNorm(5, axis_name="batch", mode=mode)

        def __call__(self, x, state):
            x, state = self.norm(self.up(x), state)
            return self.last(self.down(jax.nn.relu(x)), state)

    return eqx.nn.make_with_state(EqxNet)(jax.random.key(3))


def apply_equinox(params, x):
    model, state = params
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("mode", ["batch", "ema"])
@pytest.mark.parametrize("trained_before", [False, True])
def test_equinox_in_evaluation_normalises_by_the_new_statistics(mode, trained_before):
    model, state = equinox_net(mode)
    if trained_before:
        state = apply_equinox((model, state), BATCHES[0] * 3)[1]
    model, new = jp.reestimate_statistics(apply_equinox, (model, state), BATCHES)
    layers = [(x.weight.T, x.bias) for x in (model.up, model.down)]
    (mean, var), (mean2, var2) = map(reference, two_layers(layers, 1e-5))
    h = np.asarray(BATCHES[0], np.float64) @ layers[0][0] + layers[0][1]
    h = np.maximum((h - mean) / np.sqrt(var + 1e-5), 0) @ layers[1][0] + layers[1][1]
    got, _ = apply_equinox((eqx.nn.inference_mode(model), new), BATCHES[0])
    np.testing.assert_allclose(got, (h - mean2) / np.sqrt(var2 + 1e-5), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_training_of_equinox_goes_on_from_the_new_statistics(mode):
    model, state = equinox_net(mode)
    new = jp.reestimate_statistics(apply_equinox, (model, state), [BATCHES[0]])
    _, later = apply_equinox(new, BATCHES[0])  # the same batch moves them nowhere
    before, _ = apply_equinox((eqx.nn.inference_mode(model), new[1]), BATCHES[0])
    after, _ = apply_equinox((eqx.nn.inference_mode(model), later), BATCHES[0])
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.slow
def test_a_state_alone_is_paired_by_what_it_holds():
    model, state = equinox_net("batch")
    alone = jp.reestimate_statistics(lambda state, x: apply_equinox((model, state), x), state, BATCHES)
    both = jp.reestimate_statistics(apply_equinox, (model, state), BATCHES)[1]
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(both), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_haiku_has_its_averages_and_their_corrections():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hk = pytest.importorskip("haiku")

    def net(x, train):
        return hk.BatchNorm(True, True, 0.9)(x, train)

    model = hk.transform_with_state(net)
    params = model.init(jax.random.key(0), BATCHES[0], True)
    new = jp.reestimate_statistics(
        lambda params, x: model.apply(*params, None, x, True),
        params,
        BATCHES,
        state=lambda p, o: (p[1], o[1]),
    )
    mean, var = reference(BATCHES)
    out, _ = model.apply(*new, None, BATCHES[1], False)
    np.testing.assert_allclose(out, (BATCHES[1] - mean) / np.sqrt(var + 1e-5), atol=1e-4)
    repeat = jp.reestimate_statistics(
        lambda params, x: model.apply(*params, None, x, True),
        new,
        BATCHES[:1],
        state=lambda p, o: (p[1], o[1]),
    )
    _, later = model.apply(*repeat, None, BATCHES[0], True)
    for a, b in zip(jax.tree.leaves(later), jax.tree.leaves(repeat[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_a_small_model_has_the_statistics_of_its_own_activations():
    train_fn, variables = linen()
    groups = jp.find_groups(
        train_fn, variables, BATCHES[0], state=lambda v, o: (v["batch_stats"], o[1]["batch_stats"])
    )
    plan = jp.plan_removal(groups, variables, 0.5, budget="units")
    small, small_fn = plan.shrink(variables), plan.compact(train_fn)
    new = jp.reestimate_statistics(small_fn, small, BATCHES)
    p = small["params"]
    inputs = two_layers([(p[n]["kernel"], p[n]["bias"]) for n in ("Dense_0", "Dense_1")], 1e-5)
    for name, rows in zip(("BatchNorm_0", "BatchNorm_1"), inputs, strict=True):
        mean, var = reference(rows)
        close(new["batch_stats"][name]["mean"], mean)
        close(new["batch_stats"][name]["var"], var)


def test_mistakes_are_named():
    train_fn, variables = linen()
    with pytest.raises(ValueError, match=r"'batch_stats/BatchNorm_0/mean'.*weight 1"):
        jp.reestimate_statistics(
            lambda v, x: Net(False).apply(v, x, mutable=["batch_stats"]), variables, BATCHES
        )
    with pytest.raises(ValueError, match="no output has the path"):
        jp.reestimate_statistics(lambda v, x: train_fn(v, x)[0], variables, BATCHES)
    with pytest.raises(ValueError, match="at least one batch"):
        jp.reestimate_statistics(train_fn, variables, [])
    with pytest.raises(ValueError, match="NaN or infinity at 'batch_stats/BatchNorm_0/mean'"):
        jp.reestimate_statistics(train_fn, variables, [BATCHES[0] * jnp.nan])
    with pytest.raises(ValueError, match="as many old values"):
        jp.reestimate_statistics(train_fn, variables, BATCHES, state=lambda v, o: (v["batch_stats"], o[0]))
    with pytest.raises(ValueError, match="depends on other statistics"):
        jp.reestimate_statistics(_mixed, {"mean": jnp.zeros(4), "var": jnp.ones(4)}, BATCHES)
    with pytest.raises(ValueError, match="no output has the path"):
        jp.reestimate_statistics(lambda m, x: m(x), nnx.Linear(4, 2, rngs=nnx.Rngs(0)), BATCHES)


def _mixed(stats, x):
    mean = 0.9 * stats["mean"] + 0.1 * x.mean(0)
    return {"mean": mean, "var": 0.9 * stats["var"] + 0.1 * ((x - mean) ** 2).mean(0) + stats["mean"]}


def test_vmapped_layers_have_statistics_of_their_own():
    """Statistics with a leading axis of layers, as stacked models have them."""

    def train_fn(params, x):
        h = x[:, None] * params["scale"]
        new = {"mean": h.mean(0), "var": h.var(0)}
        return h, {name: 0.5 * params["stats"][name] + 0.5 * value for name, value in new.items()}

    params = {
        "scale": jnp.array([[1.0], [2.0]]),
        "stats": {"mean": jnp.ones((2, 4)), "var": jnp.ones((2, 4))},
    }
    new = jp.reestimate_statistics(train_fn, params, BATCHES, state=lambda p, o: (p["stats"], o[1]))
    mean, var = reference(BATCHES)
    close(new["stats"]["mean"], [mean, 2 * mean])
    close(new["stats"]["var"], [var, 4 * var])
