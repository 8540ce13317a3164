"""The forms that ONNX has, and models in ONNX Runtime (where jax2onnx is installed)."""

import importlib.util
import logging
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.delivery import onnx_model
from jaxprune.delivery.onnx_forms import in_onnx_forms

HAS_ONNX = importlib.util.find_spec("jax2onnx") and importlib.util.find_spec("onnxruntime")
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="jax2onnx or onnxruntime is not installed")
RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
IMAGES = jnp.asarray(RNG.normal(size=(2, 6, 6, 3)), jnp.float32)
ROWS = jnp.asarray(RNG.normal(size=(2, 5, 8)), jnp.float32)


def pooled(x, reducer, start, window=(1, 2, 3, 1), strides=(1, 2, 1, 1), padding="SAME"):
    return lax.reduce_window(x, start, reducer, window, strides, padding)


def attention(x):
    scores = jnp.einsum("bqd,bkd->bqk", x, x)
    scores = jnp.where(jnp.tril(jnp.ones((5, 5), bool)) & (scores > -9), scores, -jnp.inf)
    return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), x)


def two_contracted(x):
    return lax.dot_general(x, x, (((1, 2), (1, 2)), ((0,), (0,))))


CASES = {
    "max pool": (lambda x: pooled(x, lax.max, -jnp.inf), IMAGES),
    "sum pool": (lambda x: pooled(x, lax.add, 0.0, padding="VALID"), IMAGES),
    "min pool over channels": (lambda x: pooled(x, lax.min, jnp.inf, (1, 1, 2, 3), (1, 1, 2, 1)), IMAGES),
    "activations": (
        lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.gelu(x) * jax.nn.relu(x @ W @ W.T),
        ROWS,
    ),
    "attention": (attention, ROWS),
    "softmax of the first axis": (lambda x: jax.nn.softmax(x, 1), ROWS),
    "heads": (lambda x: jnp.einsum("bqhd,bkhd->bhqk", *[x.reshape(-1, 5, 2, 4)] * 2), ROWS),
    "whole number mask": (lambda x: jnp.einsum("bsd,bs->bd", x, (x[..., 0] > 0).astype(jnp.int32)), ROWS),
    "two contracted": (two_contracted, ROWS),
    "outer": (lambda x: jnp.einsum("bs,bd->bsd", x[..., 0], x[:, 0]), ROWS),
    "bools": (lambda x: jnp.where(x > 0, x > 1, x < -1).astype(jnp.float32) + x, ROWS),
    "padding": (lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 3)), constant_values=2.0), ROWS),
    "rows of a table": (lambda x: jax.vmap(jax.vmap(lambda i: W[i]))((x > 0).sum(-1) + 2), ROWS),
    "jit inside": (jax.jit(lambda x: jax.jit(jnp.cumsum, static_argnums=1)(x, 1) * 2), ROWS),
    "keys that nothing uses": (lambda x: (jax.random.split(jax.random.key(0)), x * 2)[1], ROWS),
    "scan": (
        lambda x: lax.scan(lambda c, row: (c + row, c * row), x[:, 0], x.swapaxes(0, 1))[1].sum(0),
        ROWS,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_forms_compute_what_the_function_computes(name):
    fn, x = CASES[name]
    plain = in_onnx_forms(lambda x: (fn(x),), (jax.ShapeDtypeStruct(x.shape, x.dtype),))
    np.testing.assert_allclose(plain(x)[0], fn(x), rtol=2e-5, atol=2e-6)
    assert "random" not in str(jax.make_jaxpr(plain)(x))


@pytest.mark.parametrize("mode", ["clip", "fill"])
def test_positions_beyond_an_array_are_treated_as_the_function_treats_them(mode):
    numbers = lax.GatherDimensionNumbers((1, 2), (), (0, 1))

    def fn(places):
        return lax.gather(W, places, numbers, (2, 6), mode=mode, fill_value=7)

    places = jnp.array([[0, 0], [3, 1], [-1, 0], [9, -2], [7, 0]])
    plain = in_onnx_forms(lambda x: (fn(x),), (jax.ShapeDtypeStruct(places.shape, places.dtype),))
    np.testing.assert_array_equal(plain(places)[0], fn(places))


def test_small_constants_are_computed_and_large_ones_are_not():
    def primitives(size):
        fn = lambda x: (x + jnp.sin(np.ones(size)).sum(),)  # noqa: E731
        spec = jax.ShapeDtypeStruct((3,), jnp.float32)
        return [eqn.primitive.name for eqn in jax.make_jaxpr(in_onnx_forms(fn, (spec,)))(jnp.ones(3)).eqns]

    assert primitives(4) == ["add"]
    assert primitives(4000) == ["sin", "reduce_sum", "add"]


def test_activations_remain_calls_and_lookalikes_do_not(monkeypatch):
    x = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
    called = []

    def recorded(name, real):
        return lambda *args, **kw: (called.append(name), real(*args, **kw))[1]

    def calls_of(fn):
        plain = in_onnx_forms(lambda x: (fn(x),), (jax.ShapeDtypeStruct(x.shape, x.dtype),))
        wanted = fn(x)
        called.clear()
        with monkeypatch.context() as patch:
            for name in ("softmax", "gelu", "relu"):
                patch.setattr(jax.nn, name, recorded(name, getattr(jax.nn, name)))
            found = plain(x)[0]
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
        return list(called)

    def by_hand(x):
        e = jnp.exp(x)
        return e / e.sum(-1, keepdims=True)

    assert (
        calls_of(by_hand)
        == calls_of(lambda x: by_hand(x - x[..., :1]))
        == calls_of(jax.nn.softmax)
        == ["softmax"]
    )
    assert calls_of(jax.nn.gelu) == calls_of(lambda x: jax.nn.gelu(x, approximate=False)) == ["gelu"]
    assert calls_of(jax.nn.relu) == calls_of(lambda x: jnp.maximum(x, 0.0)) == ["relu"]
    assert calls_of(lambda x: jnp.exp(x) / jnp.exp(2 * x).sum(-1, keepdims=True)) == []
    assert calls_of(lambda x: jnp.exp(x) / jnp.exp(x).sum((1, 2), keepdims=True)) == []
    assert calls_of(lambda x: jnp.maximum(x, 0.5)) == []
    assert calls_of(lambda x: 0.5 * x * (1 + jnp.tanh(0.8 * (x + 0.05 * x**3)))) == []  # not gelu's constants


@needs_onnx
@pytest.mark.parametrize("name", CASES)
def test_onnx_runtime_computes_what_the_function_computes(tmp_path, name):
    fn, x = CASES[name]
    params = {"w": jnp.full((), 1.5)}
    done = jp.export(
        tmp_path / "out", lambda p, x: fn(x * p["w"]), params, x, formats=("onnx",), latency_batches=()
    )
    assert done.report["errors"]["onnx"]["relative"] < 1e-5


def public_functions():
    return {
        (key, name): value
        for key, module in list(sys.modules.items())
        if isinstance(module, types.ModuleType) and key.split(".")[0] in ("jax", "flax", "equinox", "optax")
        for name, value in list(vars(module).items())
        if callable(value) and "_src" not in key and not name.startswith("_")
    }


@needs_onnx
def test_the_converter_leaves_nothing_changed(tmp_path):
    pytest.importorskip("flax.nnx")

    @jax.jit
    def inner(x):
        return jnp.cumsum(jnp.where(x > 0, jax.nn.gelu(x), jnp.sum(x)), axis=0)

    before, handlers, level = public_functions(), list(logging.root.handlers), logging.root.level
    x64 = jax.config.read("jax_enable_x64")
    params, x = {"w": jnp.ones((3, 3))}, jnp.ones((2, 3))
    fn = lambda p, x: inner(x @ p["w"])  # noqa: E731
    jp.export(tmp_path / "out", fn, params, x, formats=("onnx",), batch=None, latency_batches=())
    after = public_functions()
    assert [key for key, value in before.items() if after[key] is not value] == []
    assert logging.root.handlers == handlers and logging.root.level == level
    assert jax.config.read("jax_enable_x64") == x64 and not logging.root.manager.disable
    assert inner(x).shape == jax.jit(fn)(params, x).shape  # what was compiled is not the converter's


@needs_onnx
def test_what_onnx_lacks_is_named_and_leaves_nothing(tmp_path):
    def fn(p, x):
        return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(x.shape, x.dtype), x * p["w"])

    with pytest.raises(ValueError, match=r"can't be written as ONNX: .*pure_callback"):
        jp.export(tmp_path / "out", fn, {"w": jnp.ones(3)}, ROWS[..., :3], formats=("onnx",), batch=None)
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_large_weights_lie_beside_the_onnx_file(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxprune.delivery.onnx_model.LARGEST", 100)
    params = {"w": jnp.asarray(RNG.normal(size=(3, 500)), jnp.float32)}
    options = {"formats": ("onnx",), "latency_batches": ()}
    done = jp.export(tmp_path / "out", lambda p, x: x @ p["w"], params, jnp.ones((2, 3)), **options)
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size >= 6000
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 6000
    assert done.report["errors"]["onnx"]["relative"] < 1e-5


def test_a_process_with_some_of_the_cpus_has_a_thread_for_each_of_them(monkeypatch):
    """ONNX Runtime would start one for each core of the machine, and they would wait for each other."""
    monkeypatch.setattr(onnx_model.os, "cpu_count", lambda: 4)
    for cpus, threads in ((1, 1), (3, 3), (4, 0)):
        monkeypatch.setattr(
            onnx_model.os, "sched_getaffinity", lambda _, n=cpus: set(range(n)), raising=False
        )
        assert onnx_model.threads() == threads
    monkeypatch.delattr(onnx_model.os, "sched_getaffinity")
    assert onnx_model.threads() == 0
