"""Hugging Face's Flax models, built anew from a small configuration: they give what the masked models give.

    pip install transformers==4.48.3      # a version that has Flax models
    python benchmarks/rebuild.py

Random weights and small configurations; nothing is downloaded. Both models lose FFN units, the same number in each
layer, ranked over all layers. GPT-2 loses a layer first; BERT's layers end in a LayerNorm that stays when the rest
is left out, so that no configuration has fewer of them. `BertConfig` and `GPT2Config` have no head size (it is the
width divided by the number of heads), so that none can say that heads were removed either; the dimensions do.
Errors are relative to the largest output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import BertConfig, FlaxBertModel, FlaxGPT2Model, GPT2Config

import jaxprune as jp

IDS = jnp.asarray(np.random.default_rng(0).integers(0, 99, (2, 16)))

BERT_FFN = "encoder/layer/*/intermediate/dense/kernel[1]"
BERT_HEADS = "encoder/layer/*/attention/output/dense/kernel[0]"
GPT2_FFN = "h/*/mlp/c_fc/kernel[0]"  # its kernels are (out, in)
GPT2_HEADS = "h/*/attn/c_attn/bias[0]"


def bert(intermediate_size: int = 256) -> FlaxBertModel:
    return FlaxBertModel(
        BertConfig(
            hidden_size=96,
            num_attention_heads=8,
            num_hidden_layers=4,
            vocab_size=99,
            intermediate_size=intermediate_size,
        )
    )


def gpt2(n_layer: int = 4, n_inner: int = 256) -> FlaxGPT2Model:
    return FlaxGPT2Model(
        GPT2Config(n_embd=96, n_head=8, vocab_size=99, n_positions=64, n_layer=n_layer, n_inner=n_inner)
    )


def function(model: Any) -> Callable[..., jax.Array]:
    return jax.jit(lambda params, ids: model(ids, params=params)[0])


def ffn_plan(fn: Callable, params: Any, ffn: str) -> jp.Plan:
    groups = jp.find_groups(fn, params, IDS)
    return jp.plan_removal(groups, params, 0.2, "global", only=ffn, alike=ffn, round_to=8, budget="flops")


def report(name: str, sizes: dict[str, int], rebuilt: Any, compact: Any, masked: Any, full: Any) -> None:
    def error(other: Any) -> float:
        return float(jnp.abs(rebuilt - other).max() / jnp.abs(other).max())

    print(f"{name}, built anew with {sizes}:")
    print(f"error against the small function {error(compact):.1e}, the masked model {error(masked):.1e};")
    print(f"difference from the model before widths are removed {error(full):.1e}\n")


def heads(fn: Callable, params: Any, pattern: str) -> None:
    groups = jp.find_groups(fn, params, IDS)
    plan = jp.plan_removal(groups, params, 0.0, overrides={pattern: 0.25})
    print(f"two of eight heads in each layer:\n{plan.dimensions()}\n{plan.verify(fn, params, IDS)}\n")


def main() -> None:
    model = bert()
    fn, params = function(model), model.params
    plan = ffn_plan(fn, params, BERT_FFN)
    small, masked = plan.shrink(params), jp.apply_masks(params, plan.masks(params))
    sizes = {"intermediate_size": plan.dimensions()[BERT_FFN].new}
    rebuilt = function(bert(**sizes))(small, IDS)
    report(
        "FlaxBert", sizes, rebuilt, jax.jit(plan.compact(fn))(small, IDS), fn(masked, IDS), fn(params, IDS)
    )
    heads(fn, params, BERT_HEADS)

    model = gpt2()
    fn, params = function(model), model.params
    depth = jp.plan_layers(jp.find_branches(fn, params, IDS), params, number=1, level="blocks")
    shallow_fn, shallow = jax.jit(depth.compact(fn)), depth.shrink(params)
    widths = ffn_plan(shallow_fn, shallow, GPT2_FFN)
    plan = depth.then(widths)
    dimensions = plan.dimensions()
    print(f"{', '.join(depth.removed)} left out\n{dimensions}\n")
    small, masked = plan.shrink(params), jp.apply_masks(shallow, widths.masks(shallow))
    sizes = {"n_layer": dimensions["h/*"].new, "n_inner": dimensions[GPT2_FFN].new}
    left = {str(i): small["h"][str(number)] for i, number in enumerate(depth.small_depth["h/*"])}
    rebuilt = function(gpt2(**sizes))({**small, "h": left}, IDS)
    compact = jax.jit(plan.compact(fn))(small, IDS)
    report("FlaxGPT2", sizes, rebuilt, compact, shallow_fn(masked, IDS), shallow_fn(shallow, IDS))
    heads(fn, params, GPT2_HEADS)


if __name__ == "__main__":
    main()
