"""Every wrapper of sparse training around every optimizer, and in every way of running it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from optimizers import OPTIMIZERS
from sorted_selection import operation_by_operation

import jaxprune as jp
from jaxprune import sparse_training as st

KEY = jax.random.key(7)
# name -> (wrapper, kept weights of the 8 x 16 kernel after every update or None, whether parameters hold zeros)
WRAPPERS = {
    "static": (lambda inner: st.static(inner, 0.75, key=KEY), 32, True),
    "set": (lambda inner: st.set(inner, 0.75, end=9, every=2, fraction=0.5, key=KEY), 32, True),
    "rigl": (lambda inner: st.rigl(inner, 0.75, end=9, every=2, fraction=0.5, key=KEY), 32, True),
    "ac_dc": (lambda inner: st.ac_dc(inner, 0.75, begin=0, end=2, every=1), None, True),
    "ste": (lambda inner: st.ste(inner, 0.75), 32, False),
    "sr_ste": (lambda inner: st.sr_ste(inner, jp.NM(1, 4)), 32, False),
    "top_kast": (lambda inner: st.top_kast(inner, 0.75, backward_sparsity=0.5), 32, False),
    "movement": (lambda inner: st.movement(inner, jp.schedules.linear(0.75, 0, 2)), None, True),
    "movement_regrow": (
        lambda inner: st.movement(inner, jp.schedules.constant(0.75), regrow=True),
        32,
        False,
    ),
    "group_lasso": (lambda inner: st.group_lasso(inner, 0.05, learning_rate=0.1), None, True),
    "slimming": (lambda inner: st.slimming(inner, 0.1), 128, True),
}


def params_of(dtype=jnp.float32):
    return {
        "kernel": jax.random.normal(jax.random.key(0), (8, 16), dtype),
        "scale": jnp.ones(16, dtype),
    }


def step_of(tx):
    """A step on gradients that are easy to have, dense as those of masked parameters are."""

    def step(params, state):
        step.traces += 1
        used = st.straight_through(params, jp.get_masks(state))
        grads = jax.tree.map(lambda w: jnp.cos(3 * w + _ramp(w)), used)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step.traces = 0
    return step


def _ramp(w):
    return jnp.arange(w.shape[-1], dtype=w.dtype)


PAIRS = [
    pytest.param(wrapper, name, jnp.float32, marks=pytest.mark.slow)
    for wrapper in WRAPPERS
    for name in OPTIMIZERS
]
PAIRS += [(wrapper, "adamw", jnp.bfloat16) for wrapper in WRAPPERS]


@pytest.mark.slow
@pytest.mark.parametrize(("wrapper", "name", "dtype"), PAIRS)
def test_every_optimizer_in_every_wrapper(wrapper, name, dtype):
    """Exact counts and zeros, new weights without a past, and a state of the same types throughout."""
    with operation_by_operation():
        check(*WRAPPERS[wrapper], wrapper, OPTIMIZERS[name](), dtype)


def check(make, kept, holds_zeros, wrapper, inner, dtype):
    tx, params = make(inner), params_of(dtype)
    state, step = tx.init(params), step_of(tx)
    for t in range(3):
        before = state
        params, state = step(params, state)
        mask = np.broadcast_to(np.asarray(jp.get_masks(state)["kernel"]), (8, 16))
        assert kept is None or mask.sum() == kept
        if holds_zeros:
            dead = np.asarray(params["kernel"], np.float32)[~mask]
            assert (dead == 0).all() and not np.signbit(dead).any()
        if wrapper in ("set", "rigl") and t == 2:
            grown = mask & ~np.asarray(jp.get_masks(before)["kernel"])
            assert 4 < grown.sum() <= 16 and (np.asarray(params["kernel"])[grown] == 0).all()
            pairs = zip(*map(jax.tree.leaves, (state.inner_state, inner.init(params))), strict=True)
            for new, first in pairs:
                if new.shape == (8, 16):
                    np.testing.assert_array_equal(np.asarray(new)[grown], np.asarray(first)[grown])
        types = [jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), s) for s in (before, state)]
        assert types[0] == types[1]
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == dtype and np.isfinite(np.asarray(leaf, np.float32)).all()
    if wrapper in ("ac_dc", "movement"):
        assert mask.sum() == 32, "ends sparse"


def many_params():
    return jax.tree.map(lambda p: jnp.stack([p, p * 0.5, -p]), params_of())


def reference(wrapper, steps):
    """Parameters and masks after some steps, of three replicates one after the other.

    By SGD: Adam's first step is as long for every weight, so that new weights tie but for rounding.
    """
    runs = []
    with operation_by_operation():
        tx = WRAPPERS[wrapper][0](optax.sgd(0.1, momentum=0.9))
        for i in range(3):
            params = jax.tree.map(lambda p, i=i: p[i], many_params())
            state = tx.init(params)
            for _ in range(steps):
                params, state = step_of(tx)(params, state)
            runs.append((params, jp.get_masks(state)))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got[1], want[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got[0], want[0])


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["rigl", "ac_dc", "sr_ste", "top_kast", "movement", "group_lasso"])
def test_a_jitted_scan_under_vmap_is_the_same_as_operation_by_operation(wrapper):
    want = reference(wrapper, 5)
    tx = WRAPPERS[wrapper][0](optax.sgd(0.1, momentum=0.9))

    def run(params):
        step = step_of(tx)
        params, state = jax.lax.scan(lambda c, _: (step(*c), None), (params, tx.init(params)), length=5)[0]
        return params, jp.get_masks(state)

    assert_same(jax.jit(jax.vmap(run))(many_params()), want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapper", "axis_type"),
    [("rigl", "Auto"), ("set", "Explicit"), ("ste", "Explicit"), ("group_lasso", "Explicit")],
)
def test_sharded_parameters_keep_their_sharding_and_so_do_the_masks(wrapper, axis_type):
    want = jax.tree.map(lambda x: x[0], reference(wrapper, 3))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(getattr(jax.sharding.AxisType, axis_type),) * 2)
    tx = WRAPPERS[wrapper][0](optax.sgd(0.1, momentum=0.9))
    with jax.set_mesh(mesh):
        placed = NamedSharding(mesh, PartitionSpec("x", "y"))
        params = params_of()
        params = {
            "kernel": jax.device_put(params["kernel"], placed),
            "scale": jax.device_put(params["scale"], NamedSharding(mesh, PartitionSpec("y"))),
        }
        state = tx.init(params)
        step = jax.jit(step_of(tx))
        for _ in range(3):
            params, state = step(params, state)
        masks = jp.get_masks(state)
        assert params["kernel"].sharding.is_equivalent_to(placed, 2)
        if masks["kernel"].shape == (8, 16):
            assert masks["kernel"].sharding.is_equivalent_to(placed, 2)
        assert step.__wrapped__.traces == 1, "no second trace"
    assert_same(jax.device_get((params, masks)), want)


@pytest.mark.slow
def test_nnx_optimizer():
    model = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    tx = st.rigl(optax.adamw(0.1), 0.75, end=9, every=2, key=KEY)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda m: jnp.mean((m(jnp.ones((2, 8))) - 1) ** 2))(model)
        optimizer.update(model, grads)

    first = np.asarray(jax.tree.leaves(jp.get_masks(optimizer.opt_state))[1])
    for _ in range(4):
        step(model, optimizer)
    mask = np.asarray(jax.tree.leaves(jp.get_masks(optimizer.opt_state))[1])
    assert mask.sum() == first.sum() == 32
    assert (np.asarray(model.kernel[...])[~mask] == 0).all()


def test_extra_args_reach_the_inner_optimizer():
    params, inner = params_of(), optax.contrib.reduce_on_plateau()
    for make, _, _ in WRAPPERS.values():
        tx = make(inner)
        jax.eval_shape(lambda p, tx=tx: tx.update(p, tx.init(p), p, value=jnp.float32(1.0)), params)
