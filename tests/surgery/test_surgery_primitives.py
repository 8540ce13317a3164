"""Every primitive of the installed JAX has a rule, or is listed as one that freezes what it touches."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import random_plan
from jax import lax
from plain_layers import data, weights

import jaxprune as jp
from jaxprune.jaxprs.calls import KINDS
from jaxprune.surgery.inference.rules import RULES

# What they touch is frozen, with the reason in the table. A new primitive must get a rule or a place here.
FROZEN = """
after_all all_gather all_gather_done all_gather_invariant all_gather_reduced all_gather_reduced_start
all_gather_start all_to_all all_to_all_done all_to_all_start axis_index broadcast_to call call_exported
call_hi_primitive cholesky_update core_map create_linear create_token cudnn_fusion custom_lin dim_as_value
dimension_size dot_product_attention_bwd dot_product_attention_bwd_wrapper dot_product_attention_fp8_bwd
dot_product_attention_fp8_bwd_wrapper dot_product_attention_fp8_fwd dot_product_attention_fp8_fwd_wrapper
dot_product_attention_fwd dot_product_attention_fwd_wrapper empty empty2 ffi_call from_edtype geqp3 geqrf
hessenberg io_callback iota_2x32_shape linear_call ormqr pbroadcast pbroadcast_done pbroadcast_dynamic
pbroadcast_start philox2x32 philox4x32 pin platform_index ppermute_done ppermute_start precv preduced
psend psum_done psum_invariant_start psum_start pure_callback ragged_all_to_all random_clone
random_fold_in random_gamma random_seed random_split random_unwrap random_wrap reduce_scatter
reduce_scatter_done reduce_scatter_start reduced_vary_cast reduced_vary_cast_p remat_opt rng_bit_generator
rng_uniform run_state scaled_dot scaled_matmul scaled_matmul_wrapper schur select_and_scatter shard_map
stage symmetric_product threefry2x32 threefry4x32 tie to_edtype tridiagonal unpin unreachable
unreduced_pmax unreduced_pmin unreduced_psum unreduced_psum_start unreduced_reduce_scatter
unreduced_reduce_scatter_start vary_unreduced_cast vary_unreduced_cast_p
""".split()  # noqa: SIM905


# Other libraries that the tests import bring primitives of their own: ask an interpreter that has only JAX.
LIST = """
import jax
from jax._src.interpreters import mlir

tables = [mlir._lowerings, *mlir._platform_specific_lowerings.values()]
print(*{primitive.name for table in tables for primitive in table})
"""


@pytest.mark.slow
def test_every_primitive_has_a_rule_or_is_known_to_freeze():
    listed = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    names = set(listed.stdout.split())
    assert len(names) > 200
    assert names - RULES.keys() - KINDS.keys() - set(FROZEN) == set()
    assert not RULES.keys() & set(FROZEN)


def head(h, p):
    return jnp.tanh(h) @ p["out"]


@jax.custom_batching.custom_vmap
def sine(h):
    return jnp.sin(h)


@sine.def_vmap
def _sine_of_batch(size, batched, h):
    del size
    return jnp.sin(h), batched[0]


# Operations on the units of x @ w (shape (4, 8)), and the groups that must remain.
OPERATIONS = {
    "sort": (lambda h: jnp.sort(h, -1), []),
    "sort over the batch": (lambda h: jnp.sort(h, 0), [8]),
    "argsort of the batch": (lambda h: jnp.take_along_axis(h, jnp.argsort(h, 0), 0), [8]),
    "argmax over units": (lambda h: h + jnp.argmax(h, -1, keepdims=True), []),
    "argmax over the batch": (lambda h: h + jnp.argmax(h, 0), [8]),
    "reverse": (lambda h: jnp.flip(h, -1), []),
    "cumprod over the batch": (lambda h: jnp.cumprod(h, 0), [8]),
    "cummax over units": (lambda h: lax.cummax(h, 1), [8]),
    "reversed cumsum": (lambda h: lax.cumsum(h, 1, reverse=True), [8]),
    "products": (lambda h: h * jnp.prod(1 + 0.1 * h, -1, keepdims=True), [8]),
    "any and all": (
        lambda h: h * jnp.all(h > -9, -1, keepdims=True) + jnp.any(h > 9, -1, keepdims=True),
        [8],
    ),
    "clip": (lambda h: jnp.clip(h, -0.5, 0.5), [8]),
    "indexing by an array": (lambda h: h[:, jnp.array([0, 2, 4, 1, 3, 5, 7, 6])], []),
    "one entry": (lambda h: h + h[:, 3:4], [3, 4]),
    "dynamic slice of the batch": (lambda h: lax.dynamic_slice(h, (jnp.int32(1), 0), (2, 8)), [8]),
    "dynamic slice of the units": (
        lambda h: jnp.tile(lax.dynamic_slice(h, (0, jnp.int32(1)), (4, 4)), 2),
        [2],
    ),
    "dynamic update": (lambda h: lax.dynamic_update_slice(h, 2 * h[:2], (jnp.int32(1), 0)), [8]),
    "scatter of rows": (lambda h: h.at[jnp.array([2, 0])].add(h[:2]), [8]),
    "scatter of units": (lambda h: h.at[:, jnp.array([2, 0])].set(1.0), []),
    "segment sum": (lambda h: jax.ops.segment_sum(h, jnp.array([0, 1, 0, 1]), 2), [8]),
    "approximate top_k of the batch": (lambda h: lax.approx_max_k(h, 4, reduction_dimension=0)[0], [8]),
    "fft over the batch": (lambda h: jnp.abs(jnp.fft.rfft(h, axis=0)), [8]),
    "fft over units": (lambda h: jnp.fft.fft(h).real, []),
    "solve": (lambda h: jnp.linalg.solve(h.T @ h + jnp.eye(8), h.T).T, []),
    "one-hot over units": (lambda h: h + jax.nn.one_hot(jnp.argmax(h[:, ::-1], 1), 8), []),
    "a constant one-hot": (lambda h: h + jax.nn.one_hot(jnp.array([0, 3, 1, 7]), 8), [8]),
    "neighbours by an array": (lambda h: h[:, jnp.array([2, 3, 4, 5, 6, 7, 0, 1])] * h, [2]),
    "every second entry by an array": (lambda h: h[:, jnp.array([0, 2, 4, 6, 1, 3, 5, 7])], [4]),
    "rows of an index table": (lambda h: h[:, jnp.array([[0, 1, 2, 3], [4, 5, 6, 7]])].reshape(4, 8), [2, 4]),
    "take out of bounds": (
        lambda h: jnp.take(h, jnp.array([4, 5, 6, 7, 0, 1, 2, 99]), axis=1, mode="fill", fill_value=0),
        [8],
    ),
    "a permutation that is drawn": (lambda h: h[:, jax.random.permutation(jax.random.key(0), 8)], []),
    "a slice that is set": (lambda h: h.at[:, 2:5].set(0.0), [2, 3, 3]),
    "entries that are added to": (lambda h: h.at[:, jnp.array([0, 1, 2, 3])].add(h[:, 4:]), [4]),
    "constant windows": (
        lambda h: jnp.tile(jax.vmap(lambda r: lax.dynamic_slice(r, (2,), (4,)))(h), 2),
        [2, 4],
    ),
    "positions as values": (lambda h: h * jnp.arange(8.0), [8]),
    "bits": (lambda h: lax.bitcast_convert_type(h, jnp.int32).astype(jnp.float32) * 1e-9, [8]),
    "max pool over the batch": (
        lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (2, 1), (2, 1), "VALID"),
        [8],
    ),
    "sum pool over units": (
        lambda h: jnp.tile(lax.reduce_window(h, 0.0, lax.add, (1, 2), (1, 2), "VALID"), 2),
        [2],
    ),
    "general reduction": (lambda h: h + lax.reduce(h, 0.0, lambda a, b: a + b * 0.5, (0,)), [8]),
    "map over units": (lambda h: lax.map(jnp.sin, h.T).T, []),
    "reverse scan": (lambda h: lax.scan(lambda c, x: (c + x, c * x), h[0], h, reverse=True)[1], [8]),
    "negative padding": (
        lambda h: jnp.concatenate([lax.pad(h, 0.0, [(0, 0, 0), (-2, 0, 0)]), h[:, :2]], 1),
        [2, 6],
    ),
    "inner padding": (lambda h: lax.pad(h, 0.0, [(0, 0, 0), (0, 0, 1)])[:, :8], []),
    "outer product": (lambda h: jnp.einsum("bi,bj->bij", h, h).sum(-1), [8]),
    "select": (lambda h: jnp.where(h > 0, h, -0.1 * h), [8]),
    "swap": (lambda h: jnp.concatenate([h[:, 4:], h[:, :4]], 1) * h, [4]),
    "stop_gradient": (lambda h: lax.stop_gradient(h) * h, [8]),
    "sum over a mapped axis": (
        lambda h: h - jax.vmap(lambda r: lax.pmean(r, "rows"), axis_name="rows")(h),
        [8],
    ),
    "sum over mapped units": (
        lambda h: h * jax.vmap(lambda u: lax.psum(u * u, "units"), 1, 1, axis_name="units")(h),
        [8],
    ),
    "custom batching": (lambda h: sine(h), [8]),
    "logarithm to base 2": (lambda h: jnp.log2(1.5 + jnp.tanh(h)), [8]),
    "a solver for the units' columns": (lambda h: jnp.linalg.solve(jnp.eye(4) + 0.1, h), [8]),
    "a triangular solver": (lambda h: jax.scipy.linalg.solve_triangular(jnp.eye(4) + 0.1, h), [8]),
    "nested jit": (lambda h: jax.jit(lambda a: jax.jit(jnp.sin)(a) * 2)(h), [8]),
    "gradient inside": (lambda h: jax.grad(lambda a: jnp.sum(jnp.tanh(a) ** 2))(h), [8]),
    "associative scan": (lambda h: lax.associative_scan(jnp.add, h, axis=0), [8]),
    "barrier": (lambda h: lax.optimization_barrier((h, 2 * h))[1], [8]),
    "empty": (lambda h: jnp.concatenate([h, h[:, :0]], 1), [8]),
}


@pytest.mark.slow_beyond(6)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name):
    operation, sizes = OPERATIONS[name]
    params, x = weights(w=(3, 8), out=(8, 2)), data(4, 3)

    def fn(p, x):
        return head(operation(x @ p["w"]), p)

    groups = jp.find_groups(fn, params, x)
    assert sorted(g.size for g in groups) == sizes, str(groups)
    assert not any("the rule of" in frozen.reason for frozen in groups.frozen), str(groups)
    assert random_plan(groups).verify(fn, params, x).masked < 1e-5


def test_unknown_primitive_is_named_with_its_line():
    def fn(p, x):
        h = jax.pure_callback(np.sin, jax.ShapeDtypeStruct((4, 8), jnp.float32), x @ p["w"])
        return head(h, p)

    groups = jp.find_groups(fn, weights(w=(3, 8), out=(8, 2)), data(4, 3))
    reasons = [frozen.reason for frozen in groups.frozen]
    assert any(
        r.startswith("no rule for primitive 'pure_callback' at test_surgery_primitives.py:") for r in reasons
    )
