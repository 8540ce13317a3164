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

import jaxprune as jp
from jaxprune.transforms.moments import clear_moments

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "sgd_momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "adamw_bf16_moments": lambda: optax.adamw(0.1, mu_dtype=jnp.bfloat16),
    "nadam": lambda: optax.nadam(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "lion": lambda: optax.lion(0.01),
    "rmsprop": lambda: optax.rmsprop(0.1, momentum=0.9),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    "adafactor_momentum": lambda: optax.adafactor(0.1, min_dim_size_to_factor=128, momentum=0.9),
    "adagrad": lambda: optax.adagrad(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "lars": lambda: optax.lars(0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "adadelta": lambda: optax.adadelta(0.1),
    "sm3": lambda: optax.sm3(0.1),
    "multi_steps": lambda: optax.MultiSteps(optax.adamw(0.1), every_k_schedule=2).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(
        learning_rate=lambda step: 0.1 / (1 + step)
    ),
    "chain_with_clipping": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.adam(0.1), optax.ema(0.9)
    ),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.1),
    "noisy": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "partition": lambda: optax.partition(
        {"w": optax.adamw(0.1), "other": optax.sgd(0.1)},
        lambda params: jax.tree.map(lambda p: "w" if p.ndim > 1 else "other", params),
    ),
    "lookahead_free_params_mask": lambda: optax.masked(
        optax.adamw(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
}


def params_of(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "Dense_0": {"kernel": jax.random.normal(keys[0], (8, 16), dtype), "bias": jnp.ones(16, dtype)},
        "Dense_1": {"kernel": jax.random.normal(keys[1], (16, 4), dtype), "bias": jnp.ones(4, dtype)},
    }


def loss(params, x):
    h = jnp.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    return jnp.mean(
        (h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"] - 1).astype(jnp.float32) ** 2
    )


def inputs(dtype=jnp.float32):
    return jax.random.normal(jax.random.key(9), (8, 8), dtype)


def step_of(tx, x):
    def step(params, state):
        step.traces += 1
        grads = jax.grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step.traces = 0
    return step


def assert_exact_zeros(params, masks):
    for w, mask in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
        dead = np.asarray(w)[~np.broadcast_to(np.asarray(mask), w.shape)]
        assert (dead == 0).all() and not np.signbit(dead.astype(np.float32)).any(), "exactly +0.0"


def masks_for(params, sparsity=0.6, **kwargs):
    return jp.make_masks(jp.scores.magnitude(params), sparsity, **kwargs)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, jnp.float32) for name in OPTIMIZERS] + [(name, jnp.bfloat16) for name in list(OPTIMIZERS)[::2]],
)
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradual_reaches_the_sparsity_holds_zeros_and_forgets_the_pruned(name):
    params, x = params_of(), inputs()
    tx = jp.gradual(OPTIMIZERS[name](), jp.schedules.cubic(0.75, begin=1, end=5, every=2))
    state = tx.init(params)
    step = jax.jit(step_of(tx, x))
    sparsities = []
    for _ in range(7):
        before = jp.get_masks(state)
        params, state = step(params, state)
        masks = jp.get_masks(state)
        sparsities.append(jp.sparsity(params, masks))
        assert_exact_zeros(params, masks)
        assert all(
            bool(jnp.all(old | ~new))
            for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(masks), strict=True)
        )
    assert step.__wrapped__.traces == 1
    want = [round(jp.schedules.cubic(0.75, 1, 5, every=2)(t) * 192) / 192 for t in range(7)]
    assert sparsities == want
    assert sparsities[0] == 0 and sparsities[-1] == 0.75


def test_gradual_recomputes_masks_at_the_schedules_steps_only():
    params = params_of()
    calls = []

    def score(p):
        jax.debug.callback(lambda: calls.append(1))
        return jp.scores.magnitude(p)

    tx = jp.gradual(
        optax.adam(0.1), jp.schedules.linear(0.5, begin=4, end=12, every=4, initial=0.1), score=score
    )
    state = tx.init(params)
    step = jax.jit(step_of(tx, inputs()))
    seen = []
    for _ in range(20):
        params, state = step(params, state)
        jax.effects_barrier()
        seen.append(len(calls))
    assert seen == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 8


def test_gradual_resets_the_moments_of_newly_pruned_weights_to_their_initial_value():
    params = params_of()
    tx = jp.gradual(optax.chain(optax.adagrad(0.1), optax.trace(0.9)), jp.schedules.one_shot(0.5, step=2))
    state = tx.init(params)
    for _ in range(3):
        params, state = step_of(tx, inputs())(params, state)
    masks = jp.get_masks(state)
    accumulator = state.inner_state[0][0].sum_of_squares["Dense_0"]["kernel"]
    trace = state.inner_state[1].trace["Dense_0"]["kernel"]
    dead = ~np.asarray(masks["Dense_0"]["kernel"])
    assert (np.asarray(accumulator)[dead] == np.float32(0.1)).all() and (np.asarray(trace)[dead] == 0).all()
    assert (np.asarray(accumulator)[~dead] > 0.1).all() and (np.asarray(trace)[~dead] != 0).all()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scope": "local"},
        {"structure": jp.Channels()},
        {"structure": jp.Block((4, 2))},
        {"structure": jp.NM(2, 4)},
        {"structure": jp.NM(2, 4), "scope": "local"},
        {"score": jp.scores.random, "key": jax.random.key(3)},
        {"score": lambda p: jp.scores.normalize(jp.scores.magnitude(p))},
    ],
)
def test_gradual_with_every_structure_scope_and_score(kwargs):
    params = params_of()
    tx = jp.gradual(optax.adamw(0.1), jp.schedules.iterative(0.5, rounds=2, every=2), **kwargs)
    state = tx.init(params)
    step = jax.jit(step_of(tx, inputs()))
    for _ in range(5):
        params, state = step(params, state)
    masks = jp.get_masks(state)
    assert_exact_zeros(params, masks)
    assert jp.sparsity(params, masks) == pytest.approx(0.5, abs=0.1)
    if "structure" in kwargs and isinstance(kwargs["structure"], jp.NM):
        groups = np.asarray(masks["Dense_0"]["kernel"]).T.reshape(-1, 4)
        assert (groups.sum(1) == 2).all()


def wrap(kind, inner, params):
    if kind == "masked":
        return jp.masked(inner, masks_for(params))
    return jp.gradual(inner, jp.schedules.linear(0.5, begin=0, end=2))


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


def test_vmapped_gradual_scores_only_at_steps_where_a_schedule_moves():
    scored = []

    def score(params):
        jax.debug.callback(lambda: scored.append(1))
        return jp.scores.magnitude(params)

    params, x = params_of(), inputs()
    tx = jp.gradual(optax.sgd(0.1), jp.schedules.linear(0.5, begin=1, end=5, every=2), score=score)
    step = jax.jit(jax.vmap(step_of(tx, x)))
    many = jax.tree.map(lambda p: jnp.stack([p, -p]), params)
    state = jax.vmap(tx.init)(many)
    seen = []
    for _ in range(7):
        many, state = step(many, state)
        jax.effects_barrier()
        seen.append(len(scored) > 0)
        scored.clear()
    assert seen == [False, False, False, True, False, True, False]  # 0 to 0.25 at step 3, to 0.5 at step 5


def test_a_step_of_gradual_can_be_differentiated_in_the_gradients_it_gets():
    params = {"w": jnp.array([[4.0, 3.0], [2.0, 1.0]])}
    tx = jp.gradual(optax.sgd(0.5), jp.schedules.constant(0.5))

    def after(grads):
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)["w"].sum()

    slope = jax.jit(jax.grad(after))(params)["w"]
    np.testing.assert_array_equal(slope, [[-0.5, -0.5], [0.0, 0.0]])


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


def test_replaced_masks_are_enforced_by_the_next_update():
    params = params_of()
    tx = jp.masked(optax.adam(0.1))
    state = tx.init(params)
    params, state = step_of(tx, inputs())(params, state)
    masks = masks_for(params, 0.9)
    params, state = step_of(tx, inputs())(params, jp.replace_masks(state, masks))
    assert_exact_zeros(params, masks)


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


def test_a_single_array_is_a_parameter_tree_too():
    w = jnp.arange(1.0, 9).reshape(2, 4)
    tx = jp.gradual(optax.adam(0.1), jp.schedules.constant(0.5))
    state = tx.init(w)
    updates, state = tx.update(jnp.ones_like(w), state, w)
    assert optax.apply_updates(w, updates)[0].tolist() == [0, 0, 0, 0]


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


def pruned_of(masks, params):
    return jax.tree.map(lambda m, w: int((~jnp.broadcast_to(m, w.shape)).sum()), masks, params)


@pytest.mark.parametrize("made", ["schedule", "function"])
@pytest.mark.parametrize("kwargs", [{}, {"scope": "local", "minimum": 1}, {"structure": jp.Block((2, 2))}])
def test_gradual_with_a_tree_of_shares_brings_each_leaf_to_its_own(made, kwargs):
    params = params_of()
    final = {"Dense_0": {"kernel": 0.75, "bias": 0.0}, "Dense_1": {"kernel": 0.25, "bias": 0.0}}
    ramp = jp.schedules.linear(final, begin=0, end=4)
    schedule = (
        ramp if made == "schedule" else lambda s: jax.tree.map(lambda f: f * jnp.minimum(s / 4, 1), final)
    )
    tx = jp.gradual(optax.adam(0.01), schedule, **kwargs)
    state, step = tx.init(params), jax.jit(step_of(tx, inputs()))
    for t in range(6):
        params, state = step(params, state)
        assert_exact_zeros(params, jp.get_masks(state))
        part = min(t / 4, 1)
        for layer, size in (("Dense_0", 128), ("Dense_1", 64)):
            pruned = pruned_of(jp.get_masks(state), params)[layer]
            exact = part * final[layer]["kernel"] * size
            assert (
                abs(pruned["kernel"] - exact) <= (2 if "structure" in kwargs else 0.5) and pruned["bias"] == 0
            )
    assert step.__wrapped__.traces == 1 and state.sparsity.tolist() == [0.75, 0.25]


def test_an_allocation_that_grows_under_vmap_in_bfloat16_and_with_nm():
    final = {"a": 0.5, "b": 0.25}
    params = {
        name: jax.random.normal(jax.random.key(i), (2, 8, 4), jnp.bfloat16) for i, name in enumerate(final)
    }
    tx = jp.gradual(optax.sgd(0.0), jp.schedules.one_shot(final, step=1), structure=jp.NM(2, 4))
    state = jax.vmap(tx.init)(params)
    for want in ({"a": 0, "b": 0}, {"a": 32, "b": 16}):
        _, state = jax.jit(jax.vmap(tx.update))(params, state, params)
        assert pruned_of(jp.get_masks(state), params) == want


def test_the_final_count_is_exact_beyond_what_float32_holds():
    """0.9 of 3 * 2^24 is 45298483.2; the float32 nearest to 0.9 is 1.2 units too much."""
    from jaxprune.transforms.scheduled import counts_at

    n = 3 * 2**24
    assert int(jax.jit(lambda s: counts_at(s, 0.9, [n], "global"))(jnp.float32(0.9))) == round(0.9 * n)
    by_leaf = jax.jit(lambda s: counts_at(s, [0.9, 0.3], [n, n], "global"))(jnp.float32([0.9, 0.2]))
    assert [int(count) for count in by_leaf] == [round(0.9 * n), round(float(np.float32(0.2)) * n)]


@pytest.mark.parametrize(
    ("final", "kwargs", "message"),
    [
        ({"a": 0.5}, {}, "`schedule` must have the tree structure of the parameters, but it lacks 'b'"),
        (
            {"a": 0.5, "b": 0.75},
            {"structure": jp.NM(2, 4)},
            "must not pass 0.5, the sparsity of .* got 0.75 at 'b'",
        ),
        ({"a": 0.5, "b": 0.9}, {"minimum": 0.25}, "`minimum` asks for 8 of the 32 units at 'b'"),
    ],
)
def test_a_tree_of_shares_that_cannot_be_is_an_error_at_init(final, kwargs, message):
    params = {"a": jnp.ones((8, 4)), "b": jnp.ones((8, 4))}
    with pytest.raises(ValueError, match=message):
        jp.gradual(optax.sgd(0.1), jp.schedules.constant(final), **kwargs).init(params)
