"""What follows from constants alone is a table, however it is computed, and is cut with the units it meets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import difference, random_plan
from jax import lax
from plain_layers import data, weights

import jaxprune as jp

# Tables over 8 units, each with NumPy and as a computation of JAX.
TABLES = {
    "comparison": (np.arange(8) < 3, lambda: jnp.arange(8) < 3),
    "remainder": (np.arange(8) % 2 == 0, lambda: jnp.arange(8) % 2 == 0),
    "row of an identity": (np.eye(8)[3], lambda: jnp.eye(8)[3]),
    "row of a triangle": (np.tril(np.ones((8, 8)))[4], lambda: jnp.tril(jnp.ones((8, 8)))[4]),
    "integer powers": (2.0 ** np.arange(8), lambda: 2 ** jnp.arange(8)),
    "one-hots": (np.eye(8)[[0, 3, 3, 7]], lambda: jax.nn.one_hot(jnp.array([0, 3, 3, 7]), 8)),
    "a vmapped lookup": (
        np.arange(8.0)[::-1],
        lambda: jax.vmap(lambda i: jnp.arange(8.0)[7 - i])(jnp.arange(8)),
    ),
    "a loop": (
        1.0 + (np.arange(8) < 1) + (np.arange(8) < 2),
        lambda: lax.fori_loop(1, 3, lambda i, t: t + (jnp.arange(8) < i), jnp.ones(8)),
    ),
}
# Where the table meets the units h.
MEETINGS = {
    "product": lambda h, table: h * table,
    "choice": lambda h, table: jnp.where(table > 0, jnp.tanh(h), jnp.sin(h)),
    "jit": lambda h, table: jax.jit(lambda h, table: jnp.where(table < 1, h, -h))(h, table),
    "remat": lambda h, table: jax.checkpoint(lambda h: jnp.where(table < 1, h, jnp.sin(h)))(h),
    "scan": lambda h, table: lax.scan(lambda c, _: (jnp.where(table < 1, jnp.tanh(c), c), None), h, None, 2)[
        0
    ],
    "branches": lambda h, table: lax.cond(
        h.sum() > 0, lambda h: jnp.where(table < 1, h, -h), lambda h: jnp.sin(h) * (table > 0), h
    ),
}


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("meeting", ["product", "choice"])
def test_a_table_of_jax_is_like_one_of_numpy(table, meeting):
    by_numpy, by_jax = TABLES[table]
    meet = MEETINGS[meeting]
    params, x = weights(w=(3, 8), out=(8, 2)), data(4, 3)
    functions = [
        lambda p, x: meet(x @ p["w"], np.asarray(by_numpy, np.float32)) @ p["out"],
        lambda p, x: meet(x @ p["w"], by_jax()) @ p["out"],
    ]
    of_numpy, of_jax = ([(g.size, g.members) for g in jp.find_groups(fn, params, x)] for fn in functions)
    assert of_numpy == of_jax and [size for size, _ in of_jax] == [8]
    plan = random_plan(jp.find_groups(functions[1], params, x))
    small = [jax.jit(plan.compact(fn))(plan.shrink(params), x) for fn in functions]
    keep = plan.kept["out"][0]
    by_hand = (
        meet(x @ params["w"][:, keep], np.asarray(by_numpy, np.float32)[..., keep]) @ params["out"][keep]
    )
    assert difference(small[0], by_hand) < 1e-5 and difference(small[1], by_hand) < 1e-5


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("meeting", MEETINGS)
def test_a_table_may_come_into_a_call(meeting):
    params, x = weights(w=(3, 8), out=(8, 2)), data(4, 3)

    def fn(p, x):
        table = jnp.arange(8) // 3
        return MEETINGS[meeting](x @ p["w"], table) @ p["out"]

    groups = jp.find_groups(fn, params, x)
    assert [group.size for group in groups] == [8], str(groups)
    assert random_plan(groups).verify(fn, params, x).zeroed < 1e-5


def test_two_uses_of_a_table_in_a_loop_couple_nothing():
    params = weights(a=(3, 8), b=(3, 8), oa=(8, 2), ob=(8, 2))

    def fn(p, x):
        table = jnp.arange(8) % 3 == 0

        def step(carry, _):
            a, b = carry
            return (jnp.where(table, a, jnp.sin(a)), jnp.where(table, b, jnp.tanh(b))), None

        (a, b), _ = lax.scan(step, (x @ p["a"], x @ p["b"]), None, length=2)
        return a @ p["oa"] + b @ p["ob"]

    groups = jp.find_groups(fn, params, data(4, 3))
    assert [group.size for group in groups] == [8, 8]
    assert random_plan(groups).verify(fn, params, data(4, 3)).zeroed < 1e-5


@pytest.mark.slow
def test_patches_of_channels_leave_the_channels_free():
    params = weights(w=(3, 3, 2, 6), out=(6 * 4, 2))

    def fn(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=numbers)
        h = lax.conv_general_dilated_patches(h, (2, 2), (2, 2), "VALID", dimension_numbers=numbers)
        return h.mean((1, 2)) @ p["out"]

    groups = jp.find_groups(fn, params, data(2, 4, 4, 2))
    assert 6 in [group.size for group in groups], str(groups)
    assert random_plan(groups).verify(fn, params, data(2, 4, 4, 2)).masked < 1e-5


def test_data_compared_with_positions_still_freeze():
    params = weights(table=(11, 6), out=(6, 2))
    tokens = jnp.array([[1, 2, 10]])
    eye = np.eye(11, dtype=np.float32)
    for fn in (
        lambda p, t: (t[..., None] == jnp.arange(11)).astype(jnp.float32) @ p["table"] @ p["out"],
        lambda p, t: jnp.asarray(eye)[t] @ p["table"] @ p["out"],
    ):
        groups = jp.find_groups(fn, params, tokens)
        assert [group.size for group in groups] == [6], str(groups)
        assert "one-hot" in str(groups)
