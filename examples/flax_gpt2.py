"""GPT-2 of transformers==4.48.3 in Flax, untrained: `jaxprune shrink examples/flax_gpt2.py --params 0.5 --out DIR`."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from transformers import FlaxGPT2LMHeadModel, GPT2Config

import jaxprune as jp


def build():
    model = FlaxGPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=64, n_embd=128, n_layer=4, n_head=4))
    text = np.resize(np.frombuffer(Path(__file__).read_bytes(), np.uint8), (32, 64)).astype(np.int32)

    def fn(params, tokens):
        return model(tokens, jnp.ones_like(tokens), params=params).logits

    def loss(params, batch):
        logits, labels = fn(params, *batch)[:, :-1], batch[0][:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jp.Model(fn, model.params, (text[:4],), [(text[:16],), (text[16:],)], loss)
