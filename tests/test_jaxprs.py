"""The room under surgery, calibration and allocation: one table of calls, one loop over equations, one formula."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.jaxprs.calls import INLINE, KINDS, bodies_of, kind_of, scan_parts, settled, while_parts
from jaxprune.jaxprs.control_flow import rebuild
from jaxprune.jaxprs.equations import bind, literal_value, walk
from jaxprune.jaxprs.per_signature import per_signature
from jaxprune.jaxprs.tracing import trace
from jaxprune.surgery.cost import flops
from jaxprune.surgery.inference import analysis
from jaxprune.surgery.inference.kept import Keep


@jax.custom_jvp
def squared(x):
    return x * x


squared.defjvp(lambda primals, tangents: (squared(*primals), 2 * primals[0] * tangents[0]))


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (cubed(x), x), lambda x, g: (3 * x**2 * g,))


def with_batching_rule(f):
    call = jax.custom_batching.custom_vmap(f)
    call.def_vmap(lambda size, batched, *args: (jax.vmap(f)(*args), True))
    return call


sine = with_batching_rule(jnp.sin)


# A function of x (4,) with one call of each kind.
CALLS = {
    "plain": lambda x: jax.jit(jnp.tanh)(x),
    "remat": lambda x: jax.checkpoint(jnp.tanh)(x),
    "custom": sine,
    "custom_jvp": squared,
    "custom_vjp": cubed,
    "scan": lambda x: lax.scan(lambda c, y: (c + y, c * y), x[0], x[1:])[1],
    "while": lambda x: lax.while_loop(lambda c: c[0] < 9, lambda c: c * x[1] + 1, jnp.abs(x)),
    "cond": lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
    "linear_solve": lambda x: lax.custom_linear_solve(
        lambda v: 2 * v + x[0] * 0, x, lambda matvec, b: b / 2, symmetric=True
    ),
}
X = jnp.array([0.5, 1.5, 2.0, 3.0])


def values(jaxpr, consts, args):
    return walk(jaxpr, consts, args, literal_value, lambda index, eqn, ins: bind(eqn, ins))


def test_each_kind_is_in_the_table_of_this_test_and_in_that_of_surgery():
    assert set(CALLS) == set(analysis._CALLS) == set(KINDS.values()) and set(CALLS) > INLINE


@pytest.mark.parametrize("kind", CALLS)
def test_each_kind_of_call_is_found_with_its_bodies_and_rebuilt_around_them(kind):
    closed = jax.make_jaxpr(CALLS[kind])(X)
    seen = []

    def equation(index, eqn, ins):
        if kind_of(eqn) != kind:
            return bind(eqn, ins)
        seen.append(kind)
        bodies = bodies_of(eqn)
        for body in bodies:
            assert len(body.jaxpr.invars) == len(body.operands)
            if kind != "scan":
                assert [v.aval.shape for v in body.jaxpr.invars] == [
                    v.aval.shape for v in body.of(eqn.invars)
                ]
        run = [lambda *args, body=body: values(body.jaxpr, body.consts, args) for body in bodies]
        return rebuild(eqn, ins, run)

    outs = walk(closed.jaxpr, closed.consts, [X], literal_value, equation)
    np.testing.assert_array_equal(outs[0], CALLS[kind](X))
    assert seen


def test_operands_of_loops_come_apart():
    (eqn,) = jax.make_jaxpr(lambda a, c, x: lax.scan(lambda c, x: (c * a, x + c), c, x))(1.0, 2.0, X).eqns
    consts, carry, xs = scan_parts(eqn, "acx")
    assert (consts, carry, xs) == (["a"], ["c"], ["x"])

    def loop(a, b, c):
        return lax.while_loop(lambda c: c < a, lambda c: c + b, c)

    (eqn,) = jax.make_jaxpr(loop)(9.0, 1.0, 0.0).eqns
    of_cond, (consts, carry, xs) = while_parts(eqn, "abc")
    assert (of_cond, consts, carry, xs) == (["a"], ["b"], ["c"], [])


def test_a_carry_settles_when_no_step_adds_to_it():
    seen = []

    def step(carry):  # each place takes what the one before it has
        seen.append(carry)
        return [carry[0], carry[0] | carry[1], carry[1] | carry[2], carry[2]]

    outs = settled(step, [{1}, set(), set()], lambda a, b: a | b)
    assert outs == [{1}, {1}, {1}, {1}] and len(seen) == 3


def through(call):
    """A function that multiplies by its weight inside a call."""
    return lambda p, x: call(lambda w, x: jnp.sum(x @ w), p["w"], x)


def in_custom_vmap(f, w, x):
    return with_batching_rule(f)(w, x)


def in_jit(f, w, x):
    return jax.jit(f)(w, x)


def in_remat(f, w, x):
    return jax.checkpoint(f)(w, x)


@pytest.mark.parametrize("call", [in_jit, in_remat, in_custom_vmap])
def test_calibration_and_flops_see_weights_inside_all_inline_calls(call):
    params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
    assert jp.allocate.weight_flops(through(call), params, x) == {"w": 2 * 2 * 4 * 3}
    stats = jp.calibrate(through(call), params, [x])
    np.testing.assert_allclose(stats["w"].input_norms, np.sqrt(2) * np.ones((4, 3)), rtol=1e-6)


def test_flops_of_a_model_and_of_its_weights_are_counted_alike():
    """Every product below has one weight: those of all weights are those of the model, in loops and branches too."""
    params = {name: jnp.ones((4, 4)) for name in ("scan", "cond", "body", "limit")}

    def fn(p, x):
        x, _ = lax.scan(lambda c, _: (jnp.tanh(c @ p["scan"]), None), x, None, length=5)
        x = lax.cond(x[0, 0] > 0, lambda x: x @ p["cond"] @ p["cond"], lambda x: x @ p["cond"], x)
        return lax.while_loop(lambda c: jnp.sum(c @ p["limit"]) < 9, lambda c: c @ p["body"], x)

    x, once = jnp.ones((2, 4)), 2 * 2 * 4 * 4
    found = jp.allocate.weight_flops(fn, params, x)
    assert found == {"scan": 5 * once, "cond": 2 * once, "body": once, "limit": once}
    assert sum(found.values()) == flops(jp.find_groups(fn, params, x).model.frame, Keep())


def test_what_is_found_is_remembered_for_each_signature_but_not_for_symbolic_sizes():
    calls = []

    def find(params, x):
        calls.append(x.shape)
        return trace(lambda p, x: x @ p["w"], params, (x,)), len(calls)

    found = per_signature(find)
    params, x = {"w": jnp.ones((3, 2))}, jnp.ones((4, 3))
    assert found(params, x)[1] == found(params, 2 * x)[1] == 1
    assert found(params, x[:1])[1] == 2 and found(params, x.astype(jnp.bfloat16))[1] == 3
    (rows,) = jax.export.symbolic_shape("b")
    symbolic = jax.ShapeDtypeStruct((rows, 3), jnp.float32)
    assert [found(params, symbolic)[1] for _ in range(2)] == [4, 5]
    assert found(params, x)[1] == 1
