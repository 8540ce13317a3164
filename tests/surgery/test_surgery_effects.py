"""Callbacks and ragged products: what only looks freezes nothing, what is opaque freezes what it touches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import difference, gradient_error, random_masks, random_plan
from jax import lax
from jax.experimental import io_callback
from plain_layers import data, weights

import jaxprune as jp

WRAPPERS = {
    "plain": lambda f, h: f(h),
    "jit": lambda f, h: jax.jit(f)(h),
    "scan": lambda f, h: lax.scan(lambda c, _: (f(c), None), h, None, length=2)[0],
    "branch": lambda f, h: lax.cond(h.sum() < 99, f, jnp.sin, h),
    "vmap": lambda f, h: jax.vmap(f)(h),
}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_debug_callback_sees_the_kept_units(wrapper):
    seen = []

    def look(h):
        jax.debug.callback(lambda value: seen.append(value.shape[-1]), h)
        return jnp.tanh(h)

    params, x = weights(w=(3, 8), out=(8, 2)), data(4, 3)

    def fn(p, x):
        return WRAPPERS[wrapper](look, x @ p["w"]) @ p["out"]

    groups = jp.find_groups(fn, params, x)
    assert [group.size for group in groups] == [8], str(groups)
    plan = random_plan(groups)
    assert plan.verify(fn, params, x).zeroed < 1e-5
    jax.effects_barrier()
    seen.clear()
    jax.block_until_ready(jax.jit(plan.compact(fn))(plan.shrink(params), x))
    jax.effects_barrier()
    assert set(seen) == {4}


def test_effects_keep_their_order():
    seen = []
    params, x = weights(w=(3, 8), out=(8, 2)), data(4, 3)

    def note(name, *operands):
        number = jax.ShapeDtypeStruct((), jnp.float32)
        return io_callback(lambda *_: seen.append(name) or np.float32(2), number, *operands, ordered=True)

    def fn(p, x):
        h = x @ p["w"]
        numbers = [note("first", x), note("second"), note("third", h.sum())]
        return (jnp.tanh(h) * sum(numbers)) @ p["out"]

    groups = jp.find_groups(fn, params, x)
    assert [group.size for group in groups] == [8] and not seen
    plan = random_plan(groups)
    jax.block_until_ready(jax.jit(plan.compact(fn))(plan.shrink(params), x))
    jax.effects_barrier()
    assert seen == ["first", "second", "third"]


def test_a_pure_callback_freezes_only_what_it_touches():
    params, x = weights(a=(3, 8), b=(8, 6), out=(6, 2)), data(4, 3)

    def fn(p, x):
        h = jax.pure_callback(np.sin, jax.ShapeDtypeStruct((4, 8), jnp.float32), x @ p["a"])
        return jnp.tanh(h @ p["b"]) @ p["out"]

    groups = jp.find_groups(fn, params, x)
    assert [group.size for group in groups] == [6], str(groups)
    assert random_plan(groups).verify(fn, params, x).zeroed < 1e-5


@pytest.mark.slow
def test_experts_of_a_ragged_product_lose_hidden_units():
    params, x = weights(router=(3, 2), gate=(2, 3, 8), up=(2, 3, 8), down=(2, 8, 5), out=(5, 2)), data(6, 3)

    def experts(p, x):
        chosen = (x @ p["router"]).argmax(-1)
        order, counts = jnp.argsort(chosen), jnp.bincount(chosen, length=2)
        rows = x[order]
        h = jax.nn.silu(lax.ragged_dot(rows, p["gate"], counts)) * lax.ragged_dot(rows, p["up"], counts)
        h = lax.ragged_dot(h, p["down"], counts)
        return jnp.zeros_like(h).at[order].set(h) @ p["out"]

    groups = jp.find_groups(experts, params, x)
    assert sorted(group.size for group in groups) == [2, 5, 8], str(groups)
    masks = random_masks(groups)
    del masks[groups.of("router", 1)[0]]
    plan = jp.surgery.plan_units(groups, masks)
    assert plan.verify(experts, params, x).zeroed < 1e-5
    assert gradient_error(plan, experts, params, x) < 1e-5
    small = plan.shrink(params)
    chosen = np.asarray((x @ params["router"]).argmax(-1))
    by_hand = jnp.stack(
        [
            (jax.nn.silu(row @ small["gate"][e]) * (row @ small["up"][e])) @ small["down"][e] @ small["out"]
            for row, e in zip(x, chosen, strict=True)
        ]
    )
    assert difference(plan.compact(experts)(small, x), by_hand) < 1e-5


@pytest.mark.slow
def test_ragged_contractions_and_batches():
    params, x = (
        weights(a=(3, 8), b=(3, 6), rows=(8,), out=(6, 2), heads=(3, 8), e=(2, 2, 4, 5), last=(5, 2)),
        data(4, 3),
    )

    def fn(p, x):
        numbers = lax.RaggedDotDimensionNumbers((((1,), (0,)), ((), ())), [1], [])
        grams = lax.ragged_dot_general(jnp.tanh(x @ p["a"]).T, x @ p["b"], jnp.array([1, 3]), numbers)
        numbers = lax.RaggedDotDimensionNumbers((((2,), (2,)), ((0,), (1,))), [1], [0])
        h = (x @ p["heads"]).reshape(4, 2, 4).swapaxes(0, 1)
        h = lax.ragged_dot_general(h, p["e"], jnp.array([[1, 3], [2, 2]]), numbers)
        return p["rows"] @ grams.sum(0) @ p["out"] + h.sum(0) @ p["last"]

    groups = jp.find_groups(fn, params, x)
    assert sorted(group.size for group in groups) == [4, 5, 6, 8], str(groups)
    assert random_plan(groups).verify(fn, params, x).zeroed < 1e-5


def test_a_ragged_product_counts_each_row_once_in_budgets_and_scores():
    params, x = weights(up=(2, 7, 8), down=(2, 8, 5)), data(4, 7)

    def experts(p, x):
        counts = jnp.array([1, 3])
        return lax.ragged_dot(jnp.abs(lax.ragged_dot(x, p["up"], counts)), p["down"], counts)

    assert jp.allocate.weight_flops(experts, params, x) == {"up": 2 * 4 * 7 * 8, "down": 2 * 4 * 8 * 5}
    groups = jp.find_groups(experts, params, x)
    plan = jp.plan_removal(groups, params, 0.5, budget="flops")
    assert plan.small_shapes == {"up": (2, 7, 4), "down": (2, 4, 5)}
    (scores,) = jp.surgery.activation_scores(groups, params, [x]).by_group.values()
    hidden = np.abs(np.stack([row @ params["up"][e] for row, e in zip(x, (0, 1, 1, 1), strict=True)]))
    np.testing.assert_allclose(scores, hidden.mean(0), rtol=1e-5)
