"""Every script of `examples/` runs, with small settings, and does what it says."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from two_at_once import outputs_of_two

import jaxprune as jp

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scripts_have_less_than_60_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert lengths and max(lengths.values()) < 60, lengths


def test_wrap_optimizer_prunes_while_it_trains(capsys):
    pytest.importorskip("sklearn")
    assert script("wrap_optimizer").main(["--steps", "60", "--sparsity", "0.5"]) > 0.5
    assert "50.00%" in capsys.readouterr().out


def test_imp_five_seeds_draws_a_plot(tmp_path, capsys):
    pytest.importorskip("sklearn")
    figure = tmp_path / "tickets.png"
    script("imp_five_seeds").main(["--seeds", "2", "--steps", "4", "--rounds", "2", "--out", str(figure)])
    assert "36.0% pruned" in capsys.readouterr().out
    assert figure.stat().st_size > 10_000


@pytest.mark.slow
def test_channels_to_file_writes_a_folder(tmp_path, capsys):
    pytest.importorskip("sklearn")
    formats = ["safetensors"]
    formats += ["stablehlo"] if importlib.util.find_spec("flatbuffers") else []
    formats += ["onnx"] if importlib.util.find_spec("jax2onnx") else []
    folder = tmp_path / "digits"
    script("channels_to_file").main(["--steps", "20", "--formats", *formats, "--out", str(folder)])
    assert "healed: test accuracy" in capsys.readouterr().out
    assert (folder / "report.md").exists() and (folder / "model.onnx").exists() == ("onnx" in formats)


class Bytes:
    """A tokeniser of bytes, for a tiny model with the functions of SmolLM2."""

    def encode(self, text):
        self.ids = [byte % 64 for byte in text.encode()]
        return self


@pytest.mark.slow
def test_language_model_2_to_4_prunes_a_tiny_model(tmp_path, monkeypatch):
    example = script("language_model_2_to_4")
    for name, size in {"HEADS": 2, "KV_HEADS": 2, "HEAD_DIM": 16}.items():
        monkeypatch.setattr(example.smollm2, name, size)
    keys = iter(jax.random.split(jax.random.key(0), 8))
    block = {
        name: jax.random.normal(next(keys), (32, 32)) / 6
        for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    params = {
        "embedding": jax.random.normal(next(keys), (64, 32)),
        "blocks": [{**block, "attention_norm": np.ones(32, np.float32), "ffn_norm": np.ones(32, np.float32)}],
        "norm": np.ones(32, np.float32),
    }
    text, out = tmp_path / "text.txt", tmp_path / "weights.safetensors"
    text.write_text("Prune what the loss does not need, and keep the rest. " * 20)
    settings = ["--sequences", "8", "--length", "16", "--rounds", "4", "--out", str(out)]
    assert np.isfinite(example.main([str(text), *settings], (params, Bytes())))
    found = jp.load_weights(out)["blocks/0/up"].reshape(8, 4, 32)
    assert ((found != 0).sum(1) == 2).all()


def test_sharded_training_keeps_weights_and_masks_in_their_places():
    params, masks = script("sharded_training").main(["--width", "64", "--steps", "6"])
    assert jp.sparsity(params, masks) == 0.8
    for name, w in params.items():
        assert masks[name].sharding.is_equivalent_to(w.sharding, 2) and len(w.sharding.device_set) == 8


@pytest.mark.slow
def test_two_processes_prune_the_same_weights():
    outputs = outputs_of_two(EXAMPLES / "two_processes.py", lambda i: (2, i), timeout=240)
    found = [re.search(r"(\d+) of (\d+) weights kept; (\d) shards", output).groups() for output in outputs]
    kept, total, shards = map(int, found[0])
    assert found[0] == found[1] and kept == total - round(0.8 * total) and shards == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of transformers
def test_rebuilt_flax_bert_is_the_masked_model():
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "FlaxBertModel"):
        pytest.skip("this version of transformers has no Flax models")
    assert script("rebuild_flax_bert").main(["--layers", "2"]) < 1e-5
