"""jp.export: complete folders of files that compute what the function computes."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

pytest.importorskip("flatbuffers")  # with which JAX writes and reads StableHLO

PLAIN = {"formats": ("stablehlo", "safetensors"), "latency_batches": ()}


def model():
    rng = np.random.default_rng(0)
    params = {
        "up": {"kernel": rng.normal(size=(3, 16)), "bias": rng.normal(size=16)},
        "down": rng.normal(size=(16, 2)),
    }
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)

    def fn(p, x):
        return jax.nn.relu(x @ p["up"]["kernel"] + p["up"]["bias"]) @ p["down"]

    return fn, params, jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)


def runs_alone(folder, *ways, cwd):
    """The output of `python load.py` where jaxprune can't be imported."""
    code = (
        "import sys, runpy\n"
        "sys.modules['jaxprune'] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, str(folder / "load.py"), *ways]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "options", [{}, {"constants": True}, {"packed": True}, {"platforms": ("cpu", "cuda", "tpu")}]
)
def test_the_folder_computes_what_the_function_computes(tmp_path, options):
    fn, params, x = model()
    done = jp.export(tmp_path / "out", fn, params, x, **PLAIN, **options)
    names = [
        "example.safetensors",
        "load.py",
        "model.stablehlo",
        "report.json",
        "report.md",
        "weights.safetensors",
    ]
    assert sorted(os.listdir(tmp_path / "out")) == names and os.listdir(tmp_path) == ["out"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == done.report
    assert (tmp_path / "out" / "report.md").read_text() == str(done)
    assert max(e["relative"] for e in done.report["errors"].values()) < 1e-6
    exported = jax.export.deserialize(bytearray((tmp_path / "out" / "model.stablehlo").read_bytes()))
    weights = [params["down"], params["up"]["bias"], params["up"]["kernel"]]
    other = jnp.tile(x, (3, 1))
    (found,) = exported.call(*([] if options.get("constants") else weights), other)
    np.testing.assert_allclose(found, fn(params, other), rtol=1e-6)
    found = jp.load_weights(tmp_path / "out" / "weights.safetensors", like=params)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), found, params)))


@pytest.mark.slow
def test_load_py_runs_without_jaxprune_from_anywhere(tmp_path):
    fn, params, x = model()
    params["down"] = params["down"].astype(jnp.bfloat16)  # load.py reads it as float32 and gives it back
    tree_fn = lambda p, batch, scale: {"logits": fn(p, batch["x"]) * scale, "mean": batch["x"].mean(1)}  # noqa: E731
    jp.export(tmp_path / "out", tree_fn, params, {"x": x}, jnp.float32(2), packed=True, **PLAIN)
    said = runs_alone(tmp_path / "out", "stablehlo", cwd=tmp_path)
    assert said.count("largest error 0.0e+00") == 2 and "stablehlo, output/logits: float32 (4, 2)" in said
    said = runs_alone(tmp_path / "out", "weights", cwd=tmp_path)
    assert "up/kernel: float32 (3, 16), 48 of 48 not zero" in said


def test_a_plan_shrinks_full_parameters_and_describes_small_ones(tmp_path):
    fn, params, x = model()
    plan = jp.plan_removal(jp.find_groups(fn, params, x), params, sparsity=0.5)
    full = jp.export(tmp_path / "full", fn, params, x, plan=plan, **PLAIN)
    small = plan.shrink(params)
    other = jp.export(
        tmp_path / "small", plan.compact(fn), small, x, plan=plan, reference=(fn, params), **PLAIN
    )
    for done in (full, other):
        assert done.report["parameters"] == {"exported": 48, "dense": 96, "nonzero": 48}
        assert done.report["flops"] == {"exported": 2 * 4 * 8 * 5, "dense": 2 * 4 * 16 * 5}
        assert done.report["bytes"] == {"exported": 4 * 48, "dense": 4 * 96}
        assert done.report["removed"]["down"] == [[16, 2], [8, 2]]
        assert jp.Plan.load(done.folder / "plan_0.npz").small_shapes == plan.small_shapes
        found = jp.load_weights(done.folder / "weights.safetensors", like=small)
        assert bool((found["down"] == small["down"]).all())
    with pytest.raises(ValueError, match="neither those that `plan` was made for"):
        jp.export(tmp_path / "x", fn, {**params, "down": jnp.ones((16, 3))}, x, plan=plan, **PLAIN)


def test_masks_must_be_zeros_in_the_weights(tmp_path):
    fn, params, x = model()
    masks = jp.make_masks(jp.scores.magnitude(params), 0.75)
    with pytest.raises(ValueError, match=r"of 'down' that are not zero: pass `jp.apply_masks"):
        jp.export(tmp_path / "out", fn, params, x, masks=masks, **PLAIN)
    assert os.listdir(tmp_path) == []
    done = jp.export(
        tmp_path / "out", fn, jp.apply_masks(params, masks), x, masks=masks, packed=True, **PLAIN
    )
    assert done.report["sparsity"] == 0.75 and "prune 75.00%" in str(done)
    assert done.report["parameters"]["nonzero"] == 16 + 20


def test_sizes_other_than_the_batch_may_vary(tmp_path):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(11, 4)), jnp.float32)

    def fn(p, tokens, mask):
        return jnp.einsum("bsd,bs->bd", p["table"][tokens], mask)

    tokens, mask = jnp.array([[1, 2, 3], [4, 5, 0]]), jnp.ones((2, 3))
    done = jp.export(
        tmp_path / "out", fn, {"table": table}, tokens, mask, shapes=("b, s", "b, ..., s"), **PLAIN
    )
    assert [x["shape"] for x in done.report["inputs"]] == [["b", "s"], ["b", "s"]]
    exported = jax.export.deserialize(bytearray((tmp_path / "out" / "model.stablehlo").read_bytes()))
    long = jnp.arange(35).reshape(5, 7) % 11
    (found,) = exported.call(table, long, jnp.ones((5, 7)))
    np.testing.assert_allclose(found, fn({"table": table}, long, jnp.ones((5, 7))), rtol=1e-6)
    jp.export(tmp_path / "three", fn, {"table": table}, tokens, mask, constants=True, **PLAIN)
    jp.export(
        tmp_path / "two",
        fn,
        {"table": table},
        tokens,
        mask,
        shapes=("2, s", "_, s"),
        constraints=["s <= 8"],
        **PLAIN,
    )


@pytest.mark.slow
def test_nnx_and_equinox_models_need_no_code_of_theirs(tmp_path):
    eqx, nnx = pytest.importorskip("equinox"), pytest.importorskip("flax.nnx")
    x = jnp.ones((2, 3))
    graph, state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    jp.export(tmp_path / "nnx", lambda p, x: nnx.merge(graph, p)(x), state, x, **PLAIN)
    mlp = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
    jp.export(tmp_path / "equinox", lambda p, x: jax.vmap(p)(x), mlp, x, **PLAIN)
    assert "largest error" in runs_alone(tmp_path / "equinox", "stablehlo", cwd=tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"formats": ("tflite",)}, ValueError, "`formats` must be some of"),
        ({"formats": "onnx"}, ValueError, "`formats` must be some of"),
        ({"formats": ()}, ValueError, "`formats` must be some of"),
        ({"formats": ("stablehlo",)}, ValueError, "or pass constants=True"),
        ({"formats": ("stablehlo",), "constants": True, "packed": True}, ValueError, "packed=True"),
        ({"batch": "2b"}, ValueError, "`batch` must be a name"),
        ({"shapes": ("b",)}, ValueError, "write a symbol, the size"),
        ({"shapes": ("b, s", "b")}, ValueError, "for each of the 1 inputs"),
        ({"shapes": ("b, 4",)}, ValueError, "whose shape is"),
        ({"constraints": ("s <= 8 8",)}, ValueError, "`constraints`"),
        ({"reference": 3}, ValueError, "pair"),
        ({"platforms": ("tpu",)}, ValueError, "`platforms` must include 'cpu'"),
        ({"tolerance": -1.0}, ValueError, "more than -1"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(tmp_path, options, error, says):
    fn, params, x = model()
    with pytest.raises(error, match=says):
        jp.export(tmp_path / "out", fn, params, x, **{**PLAIN, **options})
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_traced_or_stored_is_named(tmp_path):
    fn, params, x = model()

    def for_four(p, x):
        return fn(p, x) if x.shape[0] == 4 else fn(p, x) + 1

    def four_only(p, x):
        return fn(p, x.reshape(2, 2, 3).reshape(4, 3))

    for bad, says in (
        (for_four, "differ from those of `fn` .* pass batch=None"),
        (four_only, "pass batch=None"),
    ):
        with pytest.raises(ValueError, match=says):
            jp.export(tmp_path / "out", bad, params, x, **PLAIN)
        jp.export(tmp_path / bad.__name__, bad, params, x, batch=None, **PLAIN)
    with pytest.raises(TypeError, match="typed PRNG key at 'key'"):
        jp.export(tmp_path / "out", lambda p, x: x, {"key": jax.random.key(0)}, x, **PLAIN)
    with pytest.raises(ValueError, match="'b' is 4 in 'input_0' and 5 in 'input_1'"):
        jp.export(tmp_path / "out", lambda p, x, y: x, params, x, jnp.ones(5), **PLAIN)
    with pytest.raises(ValueError, match="no arrays"):
        jp.export(tmp_path / "out", lambda p, x: x, {}, x, **PLAIN)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (jax.random.key(1), [2]),
        (jax.random.key(1, impl="rbg"), [4]),
        (jax.random.split(jax.random.key(1), 4), ["b", 2]),
    ],
)
def test_a_typed_key_is_exported_as_its_data(tmp_path, key, shape):
    def fn(p, x, key):
        one = key if key.ndim == 0 else key[0]
        return x * p["w"] + jax.random.normal(one, x.shape[1:])

    options = {"formats": ("stablehlo",), "constants": True, "latency_batches": ()}
    done = jp.export(tmp_path / "out", fn, {"w": jnp.full(3, 2.0)}, jnp.ones((4, 3)), key, **options)
    assert done.report["inputs"][1]["shape"] == shape and done.report["inputs"][1]["dtype"] == "uint32"
    assert done.report["errors"]["stablehlo"]["absolute"] == 0.0
    example = jp.load_weights(tmp_path / "out" / "example.safetensors")
    np.testing.assert_array_equal(example["input_1"], jax.random.key_data(key))


def test_an_existing_folder_is_never_touched(tmp_path):
    fn, params, x = model()
    (tmp_path / "out").mkdir()
    jp.export(tmp_path / "out", fn, params, x, **PLAIN)  # an empty one is filled
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(FileExistsError, match="must be new"):
        jp.export(tmp_path / "out", fn, params, x, **PLAIN)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


KILLED = """
import sys, time
from pathlib import Path
from jaxprune.files import write_whole_folder

def write(folder):
    for i in range(10_000):
        (folder / f"{i}.bin").write_bytes(b"x" * 1000)
        if i == 3:
            print("writing", flush=True)
        time.sleep(0.001)

write_whole_folder(sys.argv[1], write)
"""


def test_killed_at_any_moment_no_half_folder_is_left(tmp_path):
    for i in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        time.sleep(0.02 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not (tmp_path / "out").exists()
        assert all(name.startswith(".out.") and name.endswith(".partial") for name in os.listdir(tmp_path))
    fn, params, x = model()
    jp.export(tmp_path / "out", fn, params, x, **PLAIN)  # what was left does not matter


@pytest.mark.slow
def test_export_dies_before_its_last_file(tmp_path):
    code = (
        "import os, sys\n"
        "import jax.numpy as jnp, jaxprune as jp\n"
        "from jaxprune.delivery import _export\n"
        "_export.as_page = lambda report: os._exit(9)\n"
        "jp.export(sys.argv[1], lambda p, x: x @ p['w'], {'w': jnp.ones((3, 2))}, jnp.ones((4, 3)),\n"
        "          formats=('stablehlo', 'safetensors'), latency_batches=())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    (left,) = os.listdir(tmp_path)
    assert done.returncode == 9 and left.endswith(".partial")
    assert "report.json" in os.listdir(tmp_path / left) and "report.md" not in os.listdir(tmp_path / left)


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    fn, params, x = model()
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxprune\[export\]'"):
        jp.export(tmp_path / "out", fn, params, x)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_latencies_are_told_for_both_models_and_each_batch(tmp_path):
    fn, params, x = model()
    options = {**PLAIN, "latency_batches": (1, 5)}
    done = jp.export(tmp_path / "out", fn, params, x, reference=(fn, params), **options)
    assert [(e["runtime"], e["batch"]) for e in done.report["latency"]] == [("JAX", 1), ("JAX", 5)]
    assert all(e["dense"] > 0 and e["exported"] > 0 for e in done.report["latency"])


def test_a_report_compares_only_where_there_is_a_dense_model(tmp_path):
    fn, params, x = model()
    alone = jp.export(tmp_path / "alone", fn, params, x, **PLAIN)
    beside = jp.export(tmp_path / "beside", fn, params, x, reference=(fn, params), **PLAIN)
    assert "|  | exported |" in str(alone) and "dense" not in str(alone)
    assert "|  | dense | exported | share |" in str(beside) and "100.0%" in str(beside)


def test_load_py_says_which_package_is_missing(tmp_path):
    fn, params, x = model()
    jp.export(tmp_path / "out", fn, params, x, **PLAIN)
    code = (
        "import sys, runpy; sys.modules['onnxruntime'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out" / "load.py"), "onnx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "model.onnx needs the package onnxruntime: pip install onnxruntime"


def stacked(params, x):
    """Residual layers in a scan."""
    x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w["up"]) @ w["down"], None), x, params["layers"])
    return x @ params["out"]


def listed(params, x):
    for layer in params["layers"]:
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return x @ params["out"]


@pytest.mark.parametrize("fn", [listed, stacked])
def test_layers_that_are_left_out_leave_the_batch_free(tmp_path, fn):
    keys = jax.random.split(jax.random.key(0), 6)
    layers = [
        {"up": jax.random.normal(a, (4, 8)), "down": jax.random.normal(b, (8, 4))}
        for a, b in zip(keys[:3], keys[3:], strict=True)
    ]
    if fn is stacked:
        layers = jax.tree.map(lambda *xs: jnp.stack(xs), *layers)
    params = {"layers": layers, "out": jnp.ones((4, 2))}
    x = jax.random.normal(keys[0], (5, 4))
    plan = jp.plan_layers(jp.find_branches(fn, params, x), params, number=1)
    done = jp.export(
        tmp_path / "out", fn, params, x, plan=plan, formats=("stablehlo", "safetensors"), latency_batches=()
    )
    assert done.report["outputs"][0]["shape"] == ["b", 2]
    assert done.report["errors"]["stablehlo"]["relative"] < 1e-5
