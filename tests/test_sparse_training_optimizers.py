"""Every wrapper of sparse training around every optimizer, and in every way of running it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_transforms import OPTIMIZERS

import jaxprune as jp
import jaxprune.sparse_training.dynamic
import jaxprune.units
from jaxprune import sparse_training as st
from jaxprune.selection import select

KEY = jax.random.key(7)
# name -> (wrapper, kept weights of the 8 x 16 kernel after every update or None, whether parameters hold zeros)
WRAPPERS = {
    "static": (lambda inner: st.static(inner, 0.75, key=KEY), 32, True),
    "set": (lambda inner: st.set(inner, 0.75, end=9, every=2, fraction=0.5, key=KEY), 32, True),
    "rigl": (lambda inner: st.rigl(inner, 0.75, end=9, every=2, fraction=0.5, key=KEY), 32, True),
    "ac_dc": (lambda inner: st.ac_dc(inner, 0.75, begin=1, end=3, every=1), None, True),
    "ste": (lambda inner: st.ste(inner, 0.75), 32, False),
    "sr_ste": (lambda inner: st.sr_ste(inner, jp.NM(1, 4)), 32, False),
    "top_kast": (lambda inner: st.top_kast(inner, 0.75, backward_sparsity=0.5), 32, False),
    "movement": (lambda inner: st.movement(inner, jp.schedules.linear(0.75, 0, 3)), None, True),
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


def loss(params, masks, is_dense):
    if is_dense:
        params = st.straight_through(params, masks)
    x = jax.random.normal(jax.random.key(9), (8, 8), params["kernel"].dtype)
    return jnp.mean((jnp.tanh(x @ params["kernel"]) * params["scale"] - 1).astype(jnp.float32) ** 2)


def step_of(tx, is_dense=False):
    def step(params, state):
        grads = jax.grad(loss)(params, jp.get_masks(state), is_dense)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def sorted_selection(scores, k, *, pruned=None):
    """What `select` promises, by sorting in NumPy; that it keeps its promise is tested in test_selection."""
    gone = [None] * len(scores) if pruned is None else pruned
    gone = [
        np.zeros(s.shape, bool) if g is None else np.asarray(g) for s, g in zip(scores, gone, strict=True)
    ]
    flat = np.concatenate([np.asarray(s, np.float32).ravel() for s in scores])
    flat[np.concatenate([g.ravel() for g in gone]) | np.isnan(flat)] = -np.inf
    keep = np.ones(flat.size, bool)
    keep[np.argsort(flat, kind="stable")[: int(k)]] = False
    parts = np.split(keep, np.cumsum([s.size for s in scores])[:-1])
    return [jnp.asarray(part.reshape(s.shape) & ~g) for part, s, g in zip(parts, scores, gone, strict=True)]


@pytest.fixture
def operation_by_operation(monkeypatch):
    """Compiles no program: the reference for those that are, and cheap enough for every pair."""
    monkeypatch.setattr(jaxprune.units, "select", sorted_selection)
    monkeypatch.setattr(jaxprune.sparse_training.dynamic, "select", sorted_selection)
    with jax.disable_jit():
        yield
    monkeypatch.undo()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_optimizer_in_every_wrapper(wrapper, name, dtype, operation_by_operation):
    """Exact counts and zeros, new weights without a past, and a state of the same types throughout."""
    if dtype == jnp.bfloat16 and name not in ("adamw", "sgd_momentum"):
        pytest.skip("two optimizers are enough to see a wrapper's own dtypes")
    make, kept, holds_zeros = WRAPPERS[wrapper]
    inner = OPTIMIZERS[name]()
    tx, params = make(inner), params_of(dtype)
    state, step = tx.init(params), step_of(tx, not holds_zeros)
    for t in range(5):
        before = state
        params, state = step(params, state)
        mask = np.asarray(jp.get_masks(state)["kernel"])
        mask = np.broadcast_to(mask, (8, 16))
        assert kept is None or mask.sum() == kept
        if holds_zeros:
            dead = np.asarray(params["kernel"], np.float32)[~mask]
            assert (dead == 0).all() and not np.signbit(dead).any()
        if wrapper in ("set", "rigl") and t in (2, 4):
            grown = mask & ~np.asarray(jp.get_masks(before)["kernel"])
            assert 0 < grown.sum() <= 16 and (np.asarray(params["kernel"])[grown] == 0).all()
            pairs = zip(*map(jax.tree.leaves, (state.inner_state, inner.init(params))), strict=True)
            for new, first in pairs:
                if new.shape == (8, 16):
                    np.testing.assert_array_equal(np.asarray(new)[grown], np.asarray(first)[grown])
        for leaf in jax.tree.leaves(params):
            assert leaf.dtype == dtype and np.isfinite(np.asarray(leaf, np.float32)).all()
        types = [jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), s) for s in (before, state)]
        assert types[0] == types[1]
    if wrapper == "ac_dc":
        assert mask.sum() == 32
    if wrapper == "movement":
        assert mask.sum() == 32


def many_params():
    return jax.tree.map(lambda p: jnp.stack([p, p * 0.5, -p]), params_of())


@pytest.fixture
def reference(operation_by_operation):
    def run(wrapper, steps):
        make, _, holds_zeros = WRAPPERS[wrapper]
        tx, runs = make(optax.adamw(0.1)), []
        for i in range(3):
            params = jax.tree.map(lambda p, i=i: p[i], many_params())
            state = tx.init(params)
            for _ in range(steps):
                params, state = step_of(tx, not holds_zeros)(params, state)
            runs.append((params, jp.get_masks(state)))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)

    return run


def assert_same(got, want):
    params, masks = got
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), masks, want[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, want[0])


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name not in ("static", "slimming")])
def test_a_jitted_scan_under_vmap_is_the_same_as_operation_by_operation(wrapper, reference):
    want = reference(wrapper, 5)
    make, _, holds_zeros = WRAPPERS[wrapper]
    tx = make(optax.adamw(0.1))
    step = step_of(tx, not holds_zeros)

    def run(params):
        params, state = jax.lax.scan(lambda c, _: (step(*c), None), (params, tx.init(params)), length=5)[0]
        return params, jp.get_masks(state)

    with jax.disable_jit(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxprune.units, "select", select)
        patch.setattr(jaxprune.sparse_training.dynamic, "select", select)
        assert_same(jax.jit(jax.vmap(run))(many_params()), want)
