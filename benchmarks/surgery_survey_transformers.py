# ruff: noqa: C408
"""The Flax models of `transformers` (4.48, the last with most of them) for `surgery_survey.py`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from surgery_survey_models import Make, filled

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
TRANSFORMERS = {
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


def transformers_models() -> dict[str, Make]:
    """Flax models of `transformers` < 4.50, built from a configuration."""
    return {name: transformers_model(*entry) for name, entry in TRANSFORMERS.items()}


def transformers_model(model_name: str, config_name: str, arguments: dict[str, Any], kind: str) -> Make:
    def make():
        import transformers

        clip: Any = jnp.clip  # these models call it by names that newer versions of JAX dropped

        def shim(x, low=None, high=None, a_min=None, a_max=None):
            return clip(x, low if a_min is None else a_min, high if a_max is None else a_max)

        jnp.clip = shim
        config = getattr(transformers, config_name)(**arguments)
        shape = {"input_shape": (1, 32, 32, 3)} if kind == "images" else {}
        model = getattr(transformers, model_name)(config, seed=0, _do_init=False, **shape)
        tokens = jnp.asarray(np.random.default_rng(0).integers(3, 59, (2, 9)))
        images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16, 16)), jnp.float32)
        mask = jnp.ones_like(tokens)
        params = filled(model.params_shape_tree)

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
