"""distill trains as a plain loop does, by any optimizer, in every framework; what it must not train it leaves."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxprune as jp
from jaxprune.healing.batches import order
from jaxprune.healing.losses import kl_divergence

distill = functools.partial(jp.distill, history=True)

KEYS = jax.random.split(jax.random.key(0), 8)
BATCHES = [jax.random.normal(key, (8, 4)) for key in KEYS[:3]]
DENSE = {
    "up": jax.random.normal(KEYS[3], (4, 6)),
    "down": jax.random.normal(KEYS[4], (6, 2)),
}


def mlp(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


def small_mlp():
    groups = jp.find_groups(mlp, DENSE, BATCHES[0])
    plan = jp.plan_removal(groups, DENSE, 0.5, budget="units")
    return plan.compact(mlp), plan.shrink(DENSE)


def test_the_parameters_come_alone_unless_losses_are_asked_for():
    given = (lambda w, x: w * x, jnp.array(0.0), lambda w, x: w * x, jnp.array(3.0), [jnp.array([1.0])])
    alone = jp.distill(*given, optax.sgd(0.125), steps=2)
    both = jp.distill(*given, optax.sgd(0.125), steps=2, history=True)
    assert isinstance(alone, jax.Array) and alone == both.params and both.losses.shape == (2,)


def test_two_steps_worked_by_hand():
    """Student w = 0, teacher 3, inputs 1 and 2: gradients 2 x^2 (w - 3) of losses x^2 (w - 3)^2."""
    fn = lambda w, x: w * x  # noqa: E731
    healed = distill(
        fn, jnp.float32(0), fn, jnp.float32(3), [jnp.float32(1), jnp.float32(2)], optax.sgd(0.125), steps=2
    )
    assert healed.losses.tolist() == [9.0, 4 * 2.25**2]  # after the first step w = 0.75
    assert float(healed.params) == 0.75 + 2.25


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_it_is_the_plain_loop(cache_bytes, progress, capsys):
    small_fn, small = small_mlp()
    tx = optax.adamw(0.01)
    healed = distill(
        small_fn, small, mlp, DENSE, BATCHES, tx, steps=7, cache_bytes=cache_bytes, progress=progress
    )
    params, opt_state, losses = small, tx.init(small), []
    for i in range(7):
        x = BATCHES[i % 3]
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((small_fn(p, x) - mlp(DENSE, x)) ** 2))(params)  # noqa: B023
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    np.testing.assert_allclose(healed.losses, losses, rtol=1e-5)
    for name in small:
        np.testing.assert_allclose(healed.params[name], params[name], rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(small["up"] - small_mlp()[1]["up"]).max()) == 0  # the given ones are left alone


def test_with_a_key_every_epoch_has_all_batches_in_another_order():
    numbers = order(5, 12, jax.random.key(1)).tolist()
    assert sorted(numbers[:5]) == sorted(numbers[5:10]) == list(range(5))
    assert numbers[:5] != numbers[5:10] and len({*numbers[10:]}) == 2
    small_fn, small = small_mlp()
    first, again, other = (
        distill(small_fn, small, mlp, DENSE, BATCHES, optax.sgd(0.1), steps=5, key=jax.random.key(k)).losses
        for k in (1, 1, 2)
    )
    assert first.tolist() == again.tolist() != other.tolist()


def adamw_like(name):
    return {
        "sgd": optax.sgd(0.05, momentum=0.9),
        "adamw": optax.adamw(0.02, weight_decay=0.1),
        "lbfgs": optax.lbfgs(),
        "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.02)),
    }[name]


@pytest.mark.parametrize("name", ["sgd", "adamw", pytest.param("lbfgs", marks=pytest.mark.slow), "clipped"])
def test_pruned_weights_stay_zero_and_the_loss_falls(name):
    masks = jp.make_masks(DENSE, 0.5)
    healed = distill(mlp, DENSE, mlp, DENSE, BATCHES, adamw_like(name), steps=60, masks=masks)
    for leaf, mask in zip(jax.tree.leaves(healed.params), jax.tree.leaves(masks), strict=True):
        assert (leaf[~mask] == 0).all() and (leaf[mask] != 0).all()
    assert healed.losses[-3:].mean() < 0.8 * healed.losses[:3].mean()


def test_kl_is_that_of_softened_classes():
    s, t = np.array([[1.0, 2.0, 0.0], [0.5, 0.0, 3.0]]), np.array([[3.0, -1.0, 0.0], [1.0, 1.0, 1.0]])

    def soft(x):
        return np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True)

    wanted = 4 * np.mean(np.sum(soft(t) * np.log(soft(t) / soft(s)), -1))
    np.testing.assert_allclose(kl_divergence(jnp.array(s), jnp.array(t), 2.0), wanted, rtol=1e-5)
    ruled_out = kl_divergence(jnp.array([1.0, -jnp.inf]), jnp.array([1.0, -jnp.inf]))
    gradient = jax.grad(lambda x: kl_divergence(x, jnp.array([1.0, -jnp.inf])))(jnp.array([1.0, 2.0]))
    assert ruled_out == 0 and jnp.isfinite(gradient).all()


def test_labels_are_mixed_in_by_a_loss_of_ones_own():
    def with_labels(params, x, y):
        del y
        return mlp(params, x)

    def loss(student, teacher, inputs):
        hard = optax.softmax_cross_entropy_with_integer_labels(student, inputs[1]).mean()
        return 0.5 * hard + 0.5 * kl_divergence(student, teacher)

    batches = [(x, (x[:, 0] > 0).astype(jnp.int32)) for x in BATCHES]
    healed = distill(with_labels, DENSE, with_labels, DENSE, batches, optax.adam(0.05), steps=40, loss=loss)
    x, y = batches[0]
    hard = optax.softmax_cross_entropy_with_integer_labels(mlp(DENSE, x), y).mean()
    np.testing.assert_allclose(healed.losses[0], hard / 2, rtol=1e-5)  # student = teacher: no KL
    assert healed.losses[-1] < healed.losses[0]


def test_small_updates_of_bfloat16_are_not_lost():
    """A rate of 1e-4 moves a bfloat16 near 1 by less than its step; 100 such steps move it by two."""
    fn = lambda w, x: w * x  # noqa: E731
    w = jnp.ones(3, jnp.bfloat16)
    healed = distill(fn, w, fn, 2 * w, [jnp.ones(3, jnp.bfloat16)], optax.sgd(1e-4), steps=200)
    assert healed.params.dtype == jnp.bfloat16
    # dw/dt = -2/3 (w - 2): the distance falls by (1 - 2e-4 / 3) a step
    np.testing.assert_allclose(healed.params.astype(jnp.float32), 2 - (1 - 2e-4 / 3) ** 200, atol=2**-8)
    assert (healed.params > 1).all()


def test_only_selected_leaves_are_trained():
    small_fn, small = small_mlp()
    healed = distill(
        small_fn, small, mlp, DENSE, BATCHES, optax.adamw(0.01), steps=5, where={"up": False, "down": True}
    )
    assert (healed.params["up"] == small["up"]).all() and (healed.params["down"] != small["down"]).all()
    masks = jp.make_masks(DENSE, 0.5)
    healed = distill(
        mlp, DENSE, mlp, DENSE, BATCHES, optax.adamw(0.01), steps=5, masks=masks,
        where=lambda params: jp.prunable(params, include="down"),
    )  # fmt: skip
    assert (healed.params["up"] == jp.apply_masks(DENSE, masks)["up"]).all()
    assert (healed.params["down"] == 0).sum() == 6


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(5)(x))
        return nn.Dense(2)(nn.relu(x))


def test_statistics_and_integers_of_linen_are_left_alone():
    variables = Net().init(jax.random.key(1), BATCHES[0])
    variables = {**variables, "count": jnp.int32(3)}

    def fn(variables, x):
        return Net().apply({name: variables[name] for name in ("params", "batch_stats")}, x)

    start = jax.tree.map(lambda x: x * 2, variables)
    healed = distill(fn, start, fn, variables, BATCHES, optax.adamw(0.01), steps=10)
    for old, new in zip(
        jax.tree.leaves(start["params"]), jax.tree.leaves(healed.params["params"]), strict=True
    ):
        assert (old != new).any() or (old == 0).all()
    assert jax.tree.structure(healed.params) == jax.tree.structure(start)
    for name in ("mean", "var"):
        at: Any = [tree["batch_stats"]["BatchNorm_0"][name] for tree in (start, healed.params)]
        assert (at[0] == at[1]).all()
    assert healed.params["count"] == 6 and healed.losses[-1] < healed.losses[0]


@pytest.mark.slow
def test_nnx_states_and_equinox_modules():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up, self.norm = nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(nnx.relu(self.norm(self.up(x))))

    def fn(state, x):
        model = nnx.merge(graph, state)
        model.eval()
        return model(x)

    graph, other = nnx.split(Model(nnx.Rngs(1)))
    _, state = nnx.split(Model(nnx.Rngs(0)))
    healed = distill(fn, state, fn, other, BATCHES, optax.adam(0.05), steps=20)
    assert healed.losses[-1] < healed.losses[0] and isinstance(healed.params, nnx.State)
    assert (healed.params["norm"]["mean"][...] == 0).all()

    mlps = [eqx.nn.MLP(4, 2, 5, 1, key=key) for key in KEYS[:2]]
    run = lambda model, x: jax.vmap(model)(x)  # noqa: E731
    healed = distill(run, mlps[0], run, mlps[1], BATCHES, optax.adam(0.05), steps=20)
    assert healed.losses[-1] < healed.losses[0] and isinstance(healed.params, eqx.nn.MLP)
    assert healed.params.activation is mlps[0].activation


def test_batches_are_dicts_tuples_or_arrays():
    def fn(params, batch, flag=False):
        assert flag in (False, True)
        return {"y": mlp(params, batch["x"]), "ids": batch["ids"]}

    def batch(x):
        return {"x": np.asarray(x), "ids": np.arange(3)}

    small = jax.tree.map(lambda x: 0.9 * x, DENSE)
    one = distill(fn, small, fn, DENSE, map(batch, BATCHES), optax.sgd(0.1), steps=4)
    two = distill(fn, small, fn, DENSE, [(batch(x), True) for x in BATCHES], optax.sgd(0.1), steps=4)
    three = distill(mlp, small, mlp, DENSE, BATCHES, optax.sgd(0.1), steps=4)
    np.testing.assert_allclose(one.losses, three.losses, rtol=1e-6)
    np.testing.assert_allclose(two.losses, three.losses, rtol=1e-6)


def test_the_teachers_outputs_may_come_with_the_batches():
    """The teacher is then the function that returns them, and needs no parameters."""
    small = jax.tree.map(lambda x: 0.9 * x, DENSE)
    given = [(x, mlp(DENSE, x)) for x in BATCHES]
    taught = distill(
        lambda p, x, y: mlp(p, x), small, lambda _, x, y: y, {}, given, optax.adam(0.01), steps=5
    )
    same = distill(mlp, small, mlp, DENSE, BATCHES, optax.adam(0.01), steps=5)
    np.testing.assert_allclose(taught.losses, same.losses, rtol=1e-5)


def test_rates_may_be_traced():
    small = jax.tree.map(lambda x: 0.9 * x, DENSE)

    def last(rate):
        return distill(mlp, small, mlp, DENSE, BATCHES, optax.sgd(rate), steps=5).losses[-1]

    rates = jnp.array([0.0, 0.1])
    np.testing.assert_allclose(jax.jit(jax.vmap(last))(rates), [last(0.0), last(0.1)], rtol=1e-4)


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "steps": ({"steps": 0}, ValueError, "`steps` must be a whole number"),
    "loss": ({"loss": "l1"}, ValueError, "`loss` must be 'mse', 'kl'"),
    "a vector of losses": ({"loss": lambda s, t, x: (s - t)[0]}, ValueError, "float scalar"),
    "temperature": ({"loss": "kl", "temperature": 0.0}, ValueError, "positive"),
    "temperature of mse": ({"temperature": 2.0}, ValueError, "that of loss='kl'"),
    "where": ({"where": {"up": False, "down": False}}, ValueError, "nothing to train"),
    "where of arrays": ({"where": {"up": jnp.ones(2), "down": True}}, (TypeError, ValueError), "where"),
    "masks": ({"masks": {"up": jnp.ones((4, 6)), "down": True}}, TypeError, "bool"),
    "other batches": ({"batches": [BATCHES[0], BATCHES[0][:2]]}, ValueError, "same structure.* rows of another"),
    "no batch": ({"batches": []}, ValueError, "at least one batch"),
    "optimizer": ({"optimizer": 0.1}, TypeError, "optax optimizer"),
    "shapes": ({"small_fn": lambda p, x: mlp(p, x)[:, :1]}, ValueError, "of the shapes of `fn`"),
    "structure": ({"small_fn": lambda p, x: (mlp(p, x), x)}, ValueError, "differ"),
    "scalars": (
        {"small_fn": lambda p, x: mlp(p, x).sum(), "fn": lambda p, x: mlp(p, x).sum(), "loss": "kl"},
        ValueError,
        "last axis",
    ),
    "no float output": (
        {"small_fn": lambda p, x: mlp(p, x).argmax(-1), "fn": lambda p, x: mlp(p, x).argmax(-1)},
        ValueError,
        "floating-point",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case):
    changes, error, match = MISTAKES[case]
    given: Any = {"small_fn": mlp, "fn": mlp, "batches": BATCHES, "optimizer": optax.sgd(0.1), "steps": 3}
    given |= changes
    with pytest.raises(error, match=match):
        distill(small=DENSE, params=DENSE, **given)
