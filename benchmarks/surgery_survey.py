# ruff: noqa: C408
"""Survey of surgery over many architectures: groups found, what is frozen and why, and the lossless error.

Each model loses half of every group at random. Columns: equations, seconds to trace and analyse, groups,
largest relative error of the small function against the masked one, and against the original function on
zeroed parameters ("=" where zeroing is removal, else the reductions that differ).

    python benchmarks/surgery_survey.py              # the models of tests/surgery
    python benchmarks/surgery_survey.py --transformers   # and Flax models of `transformers` < 4.50
    python benchmarks/surgery_survey.py --only bert --table   # one of them, with its table of groups
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.surgery import Groups, plan_units


def random_plan(groups: Groups, seed: int = 0, share: float = 0.5) -> jp.Plan:
    """Removes a random half of every group."""
    rng = np.random.default_rng(seed)
    keep = {}
    for group in groups:
        mask = np.zeros(group.size, bool)
        mask[rng.permutation(group.size)[: max(1, round(group.size * (1 - share)))]] = True
        keep[group.name] = mask
    return plan_units(groups, keep)


def survey(name: str, make: Any, show_table: bool) -> bool:
    fn, params, inputs = make()
    start = time.perf_counter()
    groups = jp.find_groups(fn, params, *inputs)
    seconds = time.perf_counter() - start
    if show_table:
        print(groups)
    sizes = [int(g.size) for g in groups]
    if not groups.groups:
        print(f"{name:<30} {seconds:5.2f} s   0 groups; frozen: {groups.frozen[0].reason}")
        return True
    report = random_plan(groups).verify(fn, params, *inputs)
    zeroing = "=" if report.zeroing_is_removal else "; ".join(report.differences)
    why = sorted({f.reason.split(" at ")[0] for f in groups.frozen if not f.reason.startswith("axis")})
    print(
        f"{name:<30} {seconds:5.2f} s  {len(groups):>2} groups {sorted(set(sizes))!s:<26} "
        f"masked {report.masked:.0e}  zeroed {report.zeroed:.0e} {zeroing[:110]}"
        + (f" | frozen: {', '.join(why)}" if why else "")
        + ("" if report.ok else "   NOT OK"),
        flush=True,
    )
    return report.ok


def own_models() -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "surgery"))
    import library_models  # pyright: ignore[reportMissingImports]
    import plain_models  # pyright: ignore[reportMissingImports]

    return {**plain_models.MODELS, **library_models.MODELS}


TEXT = dict(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
)
GPT = dict(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64)
SEQ = dict(
    vocab_size=60,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=64,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=2,
)
VISION = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    image_size=16,
    patch_size=4,
)
LLAMA = dict(**TEXT, num_key_value_heads=2)

# model class, config class, its arguments, kind of input
THEIRS = {
    "albert": ("FlaxAlbertModel", "AlbertConfig", dict(**TEXT, embedding_size=16), "tokens"),
    "bart": ("FlaxBartModel", "BartConfig", SEQ, "pairs"),
    "beit": ("FlaxBeitModel", "BeitConfig", VISION, "pixels"),
    "bert": ("FlaxBertModel", "BertConfig", TEXT, "tokens"),
    "big_bird": ("FlaxBigBirdModel", "BigBirdConfig", dict(**TEXT, attention_type="original_full"), "tokens"),
    "blenderbot": ("FlaxBlenderbotModel", "BlenderbotConfig", SEQ, "pairs"),
    "blenderbot_small": ("FlaxBlenderbotSmallModel", "BlenderbotSmallConfig", SEQ, "pairs"),
    "bloom": (
        "FlaxBloomModel",
        "BloomConfig",
        dict(vocab_size=60, hidden_size=32, n_layer=2, n_head=4),
        "tokens",
    ),
    "dinov2": ("FlaxDinov2Model", "Dinov2Config", VISION, "pixels"),
    "distilbert": (
        "FlaxDistilBertModel",
        "DistilBertConfig",
        dict(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64),
        "tokens",
    ),
    "electra": ("FlaxElectraModel", "ElectraConfig", dict(**TEXT, embedding_size=16), "tokens"),
    "gemma": ("FlaxGemmaModel", "GemmaConfig", dict(**LLAMA, head_dim=8), "tokens"),
    "gpt2": ("FlaxGPT2Model", "GPT2Config", GPT, "tokens"),
    "gpt_neo": (
        "FlaxGPTNeoModel",
        "GPTNeoConfig",
        dict(
            vocab_size=60,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            max_position_embeddings=64,
            attention_types=[[["global", "local"], 1]],
            window_size=8,
        ),
        "tokens",
    ),
    "gptj": ("FlaxGPTJModel", "GPTJConfig", dict(**GPT, rotary_dim=4), "tokens"),
    "llama": ("FlaxLlamaModel", "LlamaConfig", LLAMA, "tokens"),
    "longt5": (
        "FlaxLongT5Model",
        "LongT5Config",
        dict(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, local_radius=4),
        "pairs",
    ),
    "marian": ("FlaxMarianModel", "MarianConfig", SEQ, "pairs"),
    "mbart": ("FlaxMBartModel", "MBartConfig", SEQ, "pairs"),
    "mistral": ("FlaxMistralModel", "MistralConfig", LLAMA, "tokens"),
    "mt5": (
        "FlaxMT5Model",
        "MT5Config",
        dict(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
        "pairs",
    ),
    "opt": (
        "FlaxOPTModel",
        "OPTConfig",
        dict(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
        ),
        "tokens",
    ),
    "pegasus": ("FlaxPegasusModel", "PegasusConfig", SEQ, "pairs"),
    "regnet": (
        "FlaxRegNetModel",
        "RegNetConfig",
        dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4),
        "images",
    ),
    "resnet": (
        "FlaxResNetModel",
        "ResNetConfig",
        dict(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="bottleneck"),
        "images",
    ),
    "roberta": ("FlaxRobertaModel", "RobertaConfig", TEXT, "tokens"),
    "roberta_prelayernorm": ("FlaxRobertaPreLayerNormModel", "RobertaPreLayerNormConfig", TEXT, "tokens"),
    "roformer": ("FlaxRoFormerModel", "RoFormerConfig", dict(**TEXT, embedding_size=32), "tokens"),
    "t5": (
        "FlaxT5Model",
        "T5Config",
        dict(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
        "pairs",
    ),
    "vit": ("FlaxViTModel", "ViTConfig", VISION, "pixels"),
    "wav2vec2": (
        "FlaxWav2Vec2Model",
        "Wav2Vec2Config",
        dict(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=4,
            do_stable_layer_norm=True,
            feat_extract_norm="layer",
            mask_time_prob=0.0,
        ),
        "audio",
    ),
    "xglm": (
        "FlaxXGLMModel",
        "XGLMConfig",
        dict(
            vocab_size=60, d_model=32, num_layers=2, attention_heads=4, ffn_dim=48, max_position_embeddings=64
        ),
        "tokens",
    ),
    "xlm_roberta": ("FlaxXLMRobertaModel", "XLMRobertaConfig", TEXT, "tokens"),
}


def transformers_model(entry: tuple[str, str, dict[str, Any], str]) -> Any:
    model_name, config_name, arguments, kind = entry

    def make():
        import transformers

        clip: Any = jnp.clip  # these models call it by names that newer versions of JAX dropped

        def shim(x, low=None, high=None, a_min=None, a_max=None):
            return clip(x, low if a_min is None else a_min, high if a_max is None else a_max)

        jnp.clip = shim
        config = getattr(transformers, config_name)(**arguments)
        shape = {"input_shape": (1, 32, 32, 3)} if kind == "images" else {}
        model = getattr(transformers, model_name)(config, seed=0, **shape)
        tokens = jnp.asarray(np.random.default_rng(0).integers(3, 59, (2, 9)))
        images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16, 16)), jnp.float32)
        mask = jnp.ones_like(tokens)
        # Weights of norms and biases too must not be at their identity.
        noise = np.random.default_rng(1)
        params = jax.tree.map(
            lambda p: p + jnp.asarray(noise.normal(size=p.shape) * 0.02, p.dtype), model.params
        )

        def read_out(outputs):  # a head of ours, so that the residual stream does not end in an output
            hidden = outputs[0]
            return jnp.tanh(hidden @ jnp.asarray(np.random.default_rng(2).normal(size=(hidden.shape[-1], 3))))

        def pairs(p, t, m):
            return read_out(
                model(t, attention_mask=m, decoder_input_ids=t, decoder_attention_mask=m, params=p)
            )

        if kind == "tokens":
            return (lambda p, t, m: read_out(model(t, attention_mask=m, params=p))), params, (tokens, mask)
        if kind == "pairs":
            return pairs, params, (tokens, mask)
        if kind == "images":
            images = jnp.tile(images, (1, 1, 2, 2))
            return (lambda p, x: read_out((model(x, params=p)[0].mean((2, 3)),))), params, (images,)
        if kind == "audio":
            images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 400)), jnp.float32)
        return (lambda p, x: read_out(model(x, params=p))), params, (images,)

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--transformers", action="store_true", help="also the Flax models of `transformers`")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--table", action="store_true", help="print the groups of each model")
    arguments = parser.parse_args()
    models = own_models() if "transformers" not in arguments.only else {}
    if arguments.transformers:
        models |= {f"{name} (transformers)": transformers_model(entry) for name, entry in THEIRS.items()}
    good = total = 0
    for name, make in models.items():
        if arguments.only in name:
            total += 1
            try:
                good += survey(name, make, arguments.table)
            except Exception as error:
                print(f"{name:<30} failed: {type(error).__name__}: {str(error)[:200]}", flush=True)
    print(f"{good} of {total} models lossless")


if __name__ == "__main__":
    main()
