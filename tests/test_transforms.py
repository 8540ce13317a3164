"""Every optimizer holds exact zeros in every way of running it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec
from optimizers import OPTIMIZERS, assert_exact_zeros, inputs, loss, masks_for, params_of, step_of, wrap

import jaxprune as jp
from jaxprune.transforms._moments import clear_moments


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_holds_zeros_from_the_first_update_on_and_survivors_move(name, dtype):
    params, x = params_of(dtype), inputs(dtype)
    masks = masks_for(params)
    tx = jp.masked(OPTIMIZERS[name](), masks)
    state = tx.init(params)
    step = jax.jit(step_of(tx, x))
    start = params
    for _ in range(4):
        params, state = step(params, state)  # the first params are not masked at all
        assert_exact_zeros(params, masks)
    assert step.__wrapped__.traces == 1, "no second trace"
    if dtype == jnp.bfloat16:
        return  # steps may be below the last place of bfloat16, and optax itself rounds injected betas to 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    moved = (params["Dense_0"]["kernel"] != start["Dense_0"]["kernel"]) & masks["Dense_0"]["kernel"]
    assert moved.sum() > 0.5 * masks["Dense_0"]["kernel"].sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_survivors_train_as_if_the_pruned_weights_did_not_exist(name):
    """Gradients and values of pruned weights reach neither moments nor norms nor decay."""
    params, x = params_of(), inputs()
    masks = masks_for(params)
    pruned = jp.apply_masks(params, masks)
    tx = jp.masked(OPTIMIZERS[name](), masks)
    plain = OPTIMIZERS[name]()
    state, plain_state = tx.init(params), plain.init(pruned)
    grads = jax.grad(loss)(pruned, x)
    update, plain_update = jax.jit(tx.update), jax.jit(plain.update)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for _ in range(3):
        updates, state = update(grads, state, pruned)
        want, plain_state = plain_update(jp.apply_masks(grads, masks), plain_state, pruned)
        jax.tree.map(lambda u, w, m: close(jnp.where(m, u, 0), jnp.where(m, w, 0)), updates, want, masks)
    for ours, theirs in zip(jax.tree.leaves(state.inner_state), jax.tree.leaves(plain_state), strict=True):
        if not jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            close(ours.astype(jnp.float32), theirs.astype(jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "gradual"])
def test_scan_equals_a_loop_and_vmap_equals_single_runs(kind):
    params, x = params_of(), inputs()
    tx = wrap(kind, optax.adamw(0.1), params)
    step = step_of(tx, x)

    def run(params):
        return jax.lax.scan(lambda c, _: (step(*c), None), (params, tx.init(params)), length=4)[0]

    looped, state = params, tx.init(params)
    for _ in range(4):
        looped, state = jax.jit(step)(looped, state)
    scanned, scanned_state = jax.jit(run)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), looped, scanned)
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(state), jp.get_masks(scanned_state))

    many = jax.tree.map(lambda p: jnp.stack([p, p * 0.5, -p]), params)
    batched, batched_state = jax.jit(jax.vmap(run))(many)
    for i in range(3):
        alone, alone_state = jax.jit(run)(jax.tree.map(lambda p, i=i: p[i], many))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a, b[i], atol=1e-5), alone, batched)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_array_equal(a, b[i]),
            jp.get_masks(alone_state),
            jp.get_masks(batched_state),
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "gradual"])
def test_donated_buffers_leave_the_users_masks_alone(kind):
    params = params_of()
    masks = jax.tree.map(jnp.asarray, masks_for(params))
    tx = jp.masked(optax.adam(0.1), masks) if kind == "masked" else wrap(kind, optax.adam(0.1), params)
    state = tx.init(params)
    step = jax.jit(step_of(tx, inputs()), donate_argnums=(0, 1))
    for _ in range(3):
        params, state = step(params, state)
    assert jp.sparsity(params, masks) == pytest.approx(0.6, abs=0.01), "still readable"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "gradual"])
@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_parameters_keep_their_sharding_and_so_do_the_masks(kind, explicit):
    kind_of_axis = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind_of_axis,) * 2)
    specs = {
        "Dense_0": {"kernel": PartitionSpec("x", "y"), "bias": PartitionSpec("y")},
        "Dense_1": {"kernel": PartitionSpec("y", None), "bias": PartitionSpec()},
    }
    params = params_of()
    tx = wrap(kind, optax.adamw(0.1), params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: jnp.cos(p), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    alone, alone_state = params, tx.init(params)
    for _ in range(3):
        alone, alone_state = step(alone, alone_state)
    with jax.set_mesh(mesh):
        sharded = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), params, specs)
        state = jax.jit(tx.init)(sharded)
        for _ in range(3):
            sharded, state = step(sharded, state)
        jax.tree.map(
            lambda p, s: (
                p.sharding.is_equivalent_to(NamedSharding(mesh, s), p.ndim) or pytest.fail(str(p.sharding))
            ),
            sharded,
            specs,
        )
        mask = jp.get_masks(state)["Dense_0"]["kernel"]
        if kind == "gradual":
            assert mask.sharding.is_equivalent_to(sharded["Dense_0"]["kernel"].sharding, 2)
    jax.tree.map(np.testing.assert_array_equal, alone, sharded)
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(alone_state), jp.get_masks(state))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(16, 4, rngs=rngs)])

    def __call__(self, x):
        return self.layers[0](nnx.relu(self.first(x)))


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("kind", ["masked", "gradual"])
def test_nnx_optimizer(kind):
    model = Net(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    optimizer = nnx.Optimizer(model, wrap(kind, optax.adamw(0.1), params), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        grads = nnx.grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
        optimizer.update(model, grads)

    for _ in range(4):
        step(model, optimizer, inputs())
    masks = jp.get_masks(optimizer.opt_state)
    params = nnx.state(model, nnx.Param)
    assert jp.sparsity(params, masks) == pytest.approx(0.6 if kind == "masked" else 0.5, abs=0.01)
    applied = jp.apply_masks(params, masks)
    jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(params), nnx.as_pure(applied))
    optimizer.opt_state = jp.replace_masks(optimizer.opt_state, jp.make_masks(params, 0.9))
    step(model, optimizer, inputs())
    assert (
        int(sum((w == 0).sum() for w in jax.tree.leaves(nnx.state(model, nnx.Param)) if w.ndim == 2)) >= 172
    )


@pytest.mark.slow
def test_train_state():
    net = nn.Dense(4)
    params = net.init(jax.random.key(0), inputs())["params"]
    masks = masks_for(params, 0.5)
    state = TrainState.create(apply_fn=net.apply, params=params, tx=jp.masked(optax.adamw(0.1), masks))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        grads = jax.grad(lambda p: jnp.mean(state.apply_fn({"params": p}, inputs()) ** 2))(state.params)
        return state.apply_gradients(grads=grads)

    for _ in range(3):
        state = step(state)
    assert_exact_zeros(state.params, masks)


@pytest.mark.slow
def test_extra_args_reach_the_inner_optimizer():
    params = params_of()
    tx = jp.masked(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), masks_for(params))
    tx.update(params, tx.init(params), params, value=jnp.float32(1.0))
    tx = jp.gradual(optax.contrib.reduce_on_plateau(), jp.schedules.constant(0.5))
    tx.update(params, tx.init(params), params, value=jnp.float32(1.0))


def test_masks_are_found_and_replaced_inside_chains_and_wrappers():
    params = params_of()
    masks = masks_for(params)
    inner = optax.chain(optax.clip(1.0), jp.masked(optax.adam(0.1), masks))
    for tx in (
        inner,
        optax.MultiSteps(inner, 2).gradient_transformation(),
        optax.inject_hyperparams(lambda lr: optax.chain(optax.sgd(lr), jp.masked(optax.sgd(lr), masks)))(
            lr=0.1
        ),
    ):
        state = tx.init(params)
        jax.tree.map(np.testing.assert_array_equal, jp.get_masks(state), jax.tree.map(jnp.asarray, masks))
        other = masks_for(params, 0.1)
        replaced = jp.replace_masks(state, other)
        jax.tree.map(np.testing.assert_array_equal, jp.get_masks(replaced), jax.tree.map(jnp.asarray, other))
        jax.tree.map(np.testing.assert_array_equal, jp.get_masks(state), jax.tree.map(jnp.asarray, masks))
        assert jax.tree.structure(replaced) == jax.tree.structure(state)


@pytest.mark.slow
def test_replaced_masks_are_enforced_by_the_next_update():
    params = params_of()
    tx = jp.masked(optax.adam(0.1))
    state = tx.init(params)
    params, state = step_of(tx, inputs())(params, state)
    masks = masks_for(params, 0.9)
    params, state = step_of(tx, inputs())(params, jp.replace_masks(state, masks))
    assert_exact_zeros(params, masks)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", ["adam", "muon", "adafactor", "multi_steps", "schedule_free"])
def test_clear_moments_touches_pruned_entries_only(name):
    params = params_of()
    tx = OPTIMIZERS[name]()
    state = tx.init(params)
    grads = jax.grad(loss)(params, inputs())
    _, state = tx.update(grads, state, params)
    masks = jax.tree.map(jnp.asarray, masks_for(params))
    cleared = clear_moments(state, params, masks)
    assert jax.tree.structure(cleared) == jax.tree.structure(state)
    changed = 0
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(cleared), strict=True):
        for path in ("Dense_0", "Dense_1"):
            if old.shape == params[path]["kernel"].shape:
                mask = np.asarray(masks[path]["kernel"])
                np.testing.assert_array_equal(np.asarray(new)[mask], np.asarray(old)[mask])
                assert (np.asarray(new)[~mask] == 0).all()
                changed += 1
        if old.ndim < 2:
            np.testing.assert_array_equal(old, new)
    assert changed >= (0 if name == "adafactor" else 2)


def test_scalar_false_prunes_a_whole_leaf():
    params = {"w": jnp.ones((2, 2)), "v": jnp.ones((2, 2))}
    tx = jp.masked(optax.sgd(0.1), {"w": False, "v": jnp.ones((2, 2), bool)})
    updates, _ = tx.update(params, tx.init(params), params)
    assert optax.apply_updates(params, updates)["w"].tolist() == [[0, 0], [0, 0]]


def test_bad_input_is_named():
    params = params_of()
    with pytest.raises(ValueError, match="`opt_state` holds no masks: wrap the optimizer"):
        jp.get_masks(optax.adam(0.1).init(params))
    with pytest.raises(ValueError, match="`opt_state` holds no masks"):
        jp.replace_masks(optax.adam(0.1).init(params), masks_for(params))
    twice = jp.masked(optax.chain(jp.masked(optax.sgd(0.1))))
    assert jp.get_masks(twice.init(params)) is not None, "the outermost wrapper counts"
    with pytest.raises(ValueError, match="masks of 2 wrappers"):
        jp.get_masks(optax.chain(jp.masked(optax.sgd(0.1)), jp.masked(optax.sgd(0.1))).init(params))
    with pytest.raises(ValueError, match="must have the tree structure"):
        jp.masked(optax.sgd(0.1), {"w": True}).init(params)
    tx = jp.masked(optax.sgd(0.1))
    with pytest.raises(ValueError, match="`params` must be given"):
        tx.update(params, tx.init(params))
    tx = jp.gradual(optax.sgd(0.1), jp.schedules.constant(0.5))
    with pytest.raises(ValueError, match="`params` must be given"):
        tx.update(params, tx.init(params))
    with pytest.raises(TypeError, match="must map a step to a sparsity"):
        jp.gradual(optax.sgd(0.1), 0.5)
    with pytest.raises(ValueError, match=r"must not pass 0\.5"):
        jp.gradual(optax.sgd(0.1), jp.schedules.constant(0.8), structure=jp.NM(2, 4))
    with pytest.raises(ValueError, match="nothing to prune"):
        jp.gradual(optax.sgd(0.1), jp.schedules.constant(0.8)).init({"bias": jnp.ones(3)})
    tx = jp.gradual(optax.sgd(0.1), jp.schedules.constant(0.5), score=jp.scores.random)
    with pytest.raises(ValueError, match="`score` takes a `key`"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match="must hold bool arrays"):
        jp.replace_masks(jp.masked(optax.sgd(0.1)).init(params), params)
