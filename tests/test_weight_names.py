"""Names of parameters in real models: which of them `prunable` takes for weights, however they are written."""

import re
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxprune as jp

# From Linen, NNX, Haiku, Equinox, HuggingFace, timm, torch, diffusers, llama.cpp, Mamba, RWKV and others.
WEIGHTS = """
attention/norm_proj/kernel embedding/kernel queries keys values queries.weight keys/weight mean.weight
mu.weight logvar.weight cls.weight probe.weight init_conv.weight emb_layers.1.weight label_emb.0.0.weight
blk.0.time_mix_key.weight blk.0.time_mix_receptance.weight attention.receptance.weight quant_conv.weight
controlnet_cond_embedding.conv_in.weight img_in.weight double_blocks.0.img_mod.lin.weight
context_embedder.weight time_text_embed.text_embedder.linear_1.weight adaln_single.linear.weight
prompt_encoder.mask_downscaling.0.weight reference_points.weight neck.0.weight downsample_layers.0.0.weight
layers.0.downsample.reduction.weight visual_projection/kernel token_embedder_proj/kernel logits_dense/kernel
decoder/layers/mlp/wi_0/kernel softmax/logits_ffn/linear/w pre_logits/kernel stem/kernel
spectral_norm/kernel weight_norm/kernel decoder.decoding_cross_attention.attention.self.query.weight
mlp.gate_up_proj to_q.weight to_k.weight attn.wq wo wi_0/kernel lm_head score.weight vocab_projector.weight
norm_qkv_proj.weight ffn.w1.weight attention.wq.weight feed_forward.w2.weight attention_pool.k_proj.weight
rel_proj.weight spatial_proj.weight composition.weight transpose.weight post_conv.weight pool.weight
pose_net/kernel pose.weight pos_ffn.w_1.weight normalize_net/kernel lnet.weight bnet.weight ensemble.weight
member.weight assembler.weight Dense_0/kernel Conv_0/kernel ConvTranspose_0/kernel
MultiHeadDotProductAttention_0/query/kernel OptimizedLSTMCell_0/ii/kernel GRUCell_0/hn/kernel
Einsum_0/kernel patch_embed/kernel patch_embedding/kernel embedding_conv/kernel PatchEmbed_0/Conv_0/kernel
linear/w conv2_d/w multi_head_attention/query/w lstm/linear/w transformer/h/attn/linear_1/w layers/0/kernel
layers/0/weight blocks/3/mlp/fc1/weight cell/weight_ih cell/weight_hh attn/query_proj/weight
patch_embed/weight patch_embed.weight patch_embed.proj.weight embeddings.patch_embeddings.projection.weight
vision_model.embeddings.patch_embedding.weight v.patch_embd.weight stem.conv.weight
model.layers.0.self_attn.q_proj.weight model.layers.0.mlp.down_proj.weight lm_head.weight output.weight
blk.0.attn_q.weight blk.0.ffn_gate_exps.weight blk.0.ffn_gate_inp.weight blk.0.ssm_conv1d.weight
blk.0.ssm_in.weight blk.0.ssm_out.weight blk.0.ssm_dt.weight blk.0.ssm_x.weight h.0.attn.c_attn.weight
h.0.mlp.c_fc.weight transformer.h.0.attn.c_proj.weight bert.encoder.layer.0.attention.self.query.weight
bert.encoder.layer.0.output.dense.weight bert.pooler.dense.weight cls.predictions.transform.dense.weight
encoder.block.0.layer.0.SelfAttention.q.weight encoder.block.0.layer.1.DenseReluDense.wi_0.weight
encoder.block.0.layer.0.SelfAttention.o.weight layer1.0.conv1.weight fc.weight features.0.weight
classifier.6.weight blocks.0.attn.qkv.weight blocks.0.mlp.fc1.weight head.weight head_dist.weight
pos_block.0.proj.0.weight mixer.conv1d.weight backbone.layers.0.mixer.in_proj.weight
backbone.layers.0.mixer.x_proj.weight backbone.layers.0.mixer.dt_proj.weight
backbone.layers.0.mixer.out_proj.weight layers/mixer/conv1d/kernel lstm.weight_ih_l0
lstm.weight_hh_l0_reverse attn.in_proj_weight text_projection visual.proj time_embed.0.weight
time_embed.2.weight time_embedding.linear_1.weight t_embedder.mlp.0.weight adaLN_modulation.1.weight
norm1.linear.weight x_embedder.proj.weight rel_pos_mlp.fc1.weight cpb_mlp.0.weight linear_pos.weight
pos_proj.weight pos_conv_embed.conv.weight_v pos_conv_embed.conv.parametrizations.weight.original1
linear_tokens.weight mlp_tokens.fc1.weight token_mixing/Dense_0/kernel channel_mixing/Dense_1/kernel
normalizer_head/w embedding_projection.weight embeddings_project.weight embed_proj.weight
feature_projection.projection.weight encoder.embedding_hidden_mapping_in.weight router.weight gate.weight
mlp.experts.gate_up_proj mlp.experts.0.w1.weight kernel w weight A B w1 W input_gate_weight q_einsum/w
mlp/gating_einsum/w linear_out/kernel shared_expert.up_proj.weight SpectralNorm_0/layer/kernel
WeightNorm_0/kernel base_layer.weight q_proj.base_layer.weight transformer/~/linear/w mlp/~/linear_0/w
gate_proj value key query value/kernel conv_pos/kernel lin_rel.weight pos_tag_head.weight to_tokens.weight
decoder/kernel encoder/dense/kernel Dense/kernel_v encoder.norm_mlp.fc.weight kernel_mu scale_net/kernel
state_proj/kernel beta_net.fc.weight token_classifier.weight classifier/weight embed_patches.proj.weight
conv_norm_act.conv.weight generator.proj.weight norm_head.weight prefix_encoder.trans.0.weight
latent_proj.weight from_latents.weight
"""
OTHERS = """
batch_norm/~/mean_ema/hidden batch_norm/~/var_ema/hidden
attention_norm/kernel ffn_norm/kernel ln_f/kernel prompt_encoder.point_embeddings.0.weight
no_mask_embed.weight mask_decoder.iou_token.weight mask_tokens.weight
pe_layer.positional_encoding_gaussian_matrix output_position_encodings.position_embeddings
query_position_embeddings.weight row_embed.weight level_embed embed_positions.pe_k.weight
input_embeds_layers.0.weight scale_shift_table position_emb/emb_var mixer.dt_bias mixer.conv_state
time_mix_first.weight time_mix_decay.weight time_mix_lerp_w.weight wav.masked_spec_embed time_mix_key
attn.query_norm.scale relpos_bias/rel_embedding token_embedder/embedding
blocks.0.attn.relative_position_bias_table norm1.1.weight layer_norm1.weight sa_layer_norm.weight
norm_final.weight layernorm_before.weight layernorm_embedding.weight Dense_0/bias attention/query/bias
layers/bias BatchNorm_0/scale BatchNorm_0/bias LayerNorm_0/scale LayerNorm_0/bias
batch_stats/BatchNorm_0/mean batch_stats/BatchNorm_0/var cache/attn/cached_key Embed_0/embedding
shared/embedding Transformer/posembed_input/pos_embedding cls MAPHead_0/probe embed/embeddings embed/w
tok_embed/w wte/weight wpe/weight encoder/layer/0/attention/relative_attention_bias/embedding
relative_attention_bias.weight model.embed_tokens.weight model.decoder.embed_positions.weight
transformer.wte.weight transformer.wpe.weight embeddings.word_embeddings.weight
bert.embeddings.token_type_embeddings.weight bert.embeddings.position_embeddings.weight embeddings.cls_token
embeddings.mask_token embeddings.position_embeddings encoder.layer_norm.weight model.norm.weight
input_layernorm.weight post_attention_layernorm.weight q_norm.weight blocks.0.norm1.weight ln_1.weight
ln_f.weight ln_pre.weight ln_final.weight bn1.weight norm_f.weight norms.0.weight layer_norms/1/weight
gn1.weight groupnorm.weight norm.weight norm/weight norm2/weight LayerNorm/weight
model.layers.0.input_layernorm.weight final_layer_norm.weight bert.embeddings.LayerNorm.weight
blocks.0.ls1.gamma blocks.0.ls2.gamma gamma gamma_1 layer_scale1.lambda1 layer_scale logit_scale lambda_1
ls1 token_embd.weight position_embd.weight token_types.weight blk.0.attn_norm.weight output_norm.weight
rope_freqs.weight blk.0.ssm_a blk.0.ssm_d blk.0.attn_rel_b.weight blk.0.ssm_norm.weight
blk.0.attn_q_norm.weight token_embd_norm.weight cls_token dist_token reg_token register_tokens mask_token
class_token pos_embed pos_embedding abs_pos_emb absolute_pos_embed pos_emb positional_embedding
position_embeddings positional_encoding pos_encoding pe relative_position_bias_table rel_pos_h rel_pos_w
rel_pos attn.rel_pos.width_rel attn.rel_pos.height_rel relative_position_bias rel_embeddings.weight
rel_embedding pos_bias_u pos_bias_v r_w_bias u_bias prompt_tokens prompt prompts/0 prefix_tokens soft_prompt
query_tokens query_embed.weight latents latent_query object_queries tokens codebook codebooks
quantizer.codebook quantize.embedding.weight quantizer.layers.0._codebook.embed
quantizer.layers.0._codebook.embed_avg quantizer.codevectors A_log backbone.layers.0.mixer.A_log
layers/mixer/A_log log_A_real A_imag log_dt log_step a_param rg_lru.recurrent_param nu_log Lambda_re
time_decay att.time_mix_k att.time_first lora_a lora_b lora_A.default.weight q_proj.lora_B.default.weight
lora_embedding_A.default lora_magnitude_vector.default.weight lora/lora_a lora/a q_proj/lora/b
lora_unet_down_blocks_0_to_q.lora_down.weight kernel_lora_a w_lora_b attn.to_q.lora.up.weight lokr_w1
hada_w1_a bias_hh_l0 bias_ih_l0 attn.bias_k attn.in_proj_bias masked_bias attn.masked_bias attn.bias
attn_mask causal_mask inv_freq rotary_emb.inv_freq freqs_cis weight_g pos_conv_embed.conv.weight_g
parametrizations.weight.original0 gpt_neox.embed_in.weight tok_embeddings.weight emb.weight emb.0.weight
label_emb.weight y_embedder.embedding_table.weight model.decoder.embed_tokens.0.weight
embed_tokens_per_layer.weight embedder/input_embedding running_mean running_var bn/running_mean moving_mean
mean_ema pos_embs tok_emb.weight word_emb.weight text_model.embeddings.token_embedding.weight
text_model.embeddings.position_embedding.weight class_embedding roberta.embeddings.word_embeddings.weight
xlm.position_embeddings.weight mask_emb seg_embed word_embedding.weight embeddings.weight
backbone.embedding.weight embd.wte.weight visual.positional_embedding scale stacked/scale attention_biases
learned_queries pos_table lookup_table position_bias initial_state temperature attn.logit_scale offset
"""
MATRIX = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def nested(names, leaf):
    return {names[0]: nested(names[1:], leaf)} if names else leaf


@pytest.mark.parametrize(("names", "want"), [(WEIGHTS, True), (OTHERS, False)], ids=["weights", "others"])
def test_names_of_real_models_flat_and_nested(names, want):
    wrong = []
    for name in names.split():
        parts = re.split("[/.]", name)
        trees = {name: MATRIX}, {"model." + ".".join(parts): MATRIX}, nested(["model", *parts], MATRIX)
        wrong += [name for tree in trees if jax.tree.leaves(jp.prunable(tree)) != [want]]
    assert not wrong


def test_what_a_leaf_is_depends_on_those_beside_it():
    mamba = {"mixer": {"A_log": MATRIX, "D": MATRIX, "in_proj": {"kernel": MATRIX}}}
    assert jp.prunable(mamba) == {"mixer": {"A_log": False, "D": False, "in_proj": {"kernel": True}}}
    assert jp.prunable({"C": MATRIX, "D": MATRIX}) == {"C": True, "D": True}
    flat = {"lstm.w": MATRIX, "lstm.b": MATRIX}
    assert jp.prunable(flat) == {"lstm.w": True, "lstm.b": False}


def test_convolutions_that_embed_are_weights_and_tables_with_a_leading_axis_are_not():
    shapes = {"embed.weight": (8, 3, 4, 4), "pos.weight": (1, 9, 8), "norm.weight": (3, 8, 8)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    assert jp.prunable(tree) == {"embed.weight": True, "pos.weight": False, "norm.weight": False}


class Equinox(eqx.Module):
    tok: eqx.nn.Embedding
    embed: eqx.nn.Linear
    n: eqx.nn.LayerNorm
    norm: eqx.nn.Conv2d
    cell: eqx.nn.GRUCell


@pytest.mark.slow
def test_equinox_layers_say_what_they_hold_whatever_they_are_called():
    keys = jax.random.split(jax.random.key(0), 4)
    model = Equinox(
        eqx.nn.Embedding(5, 4, key=keys[0]),
        eqx.nn.Linear(4, 4, key=keys[1]),
        eqx.nn.LayerNorm((4, 4)),
        eqx.nn.Conv2d(2, 2, 3, key=keys[2]),
        eqx.nn.GRUCell(2, 3, key=keys[3]),
    )
    flags = jp.prunable(eqx.filter(model, eqx.is_array))
    weights = (flags.embed.weight, flags.norm.weight, flags.cell.weight_ih, flags.cell.weight_hh)
    assert weights == (True,) * 4
    assert sum(jax.tree.leaves(flags)) == 4


class Boxed(nn.Module):
    box: type

    @nn.compact
    def __call__(self, x):
        def boxed(init, rank):
            return (
                nn.with_partitioning(init, ("a",) * rank)
                if self.box is nn.Partitioned
                else (nn.with_logical_partitioning(init, ("a",) * rank) if self.box else init)
            )

        x = nn.Dense(
            4, kernel_init=boxed(nn.initializers.lecun_normal(), 2), bias_init=boxed(nn.initializers.zeros, 1)
        )(x)
        return x + self.param("pos_embed", boxed(nn.initializers.normal(), 2), (4, 4))


@pytest.mark.parametrize("box", [nn.Partitioned, nn.LogicallyPartitioned])
def test_linen_boxes_change_neither_paths_nor_rules(box):
    def stacked(box):
        net = nn.scan(
            lambda m, c, _: (m(c), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return net(Boxed(box), x, None)

        return jax.eval_shape(lambda: Net().init(jax.random.key(0), jnp.ones((4, 4))))

    boxed, plain = stacked(box), stacked(None)
    assert jax.tree.structure(boxed) != jax.tree.structure(plain)
    assert jp.params.flatten_with_paths(boxed)[0] == jp.params.flatten_with_paths(plain)[0]
    assert jax.tree.leaves(jp.prunable(boxed)) == jax.tree.leaves(jp.prunable(plain))
    assert sum(jax.tree.leaves(jp.prunable(boxed))) == 1
    nested_boxes = {"kernel": box(box(jnp.ones((2, 2)), ("a",)), ("b",))}
    assert jp.params.flatten_with_paths(nested_boxes)[0] == ["kernel"]


def test_variables_of_nnx_other_than_parameters_are_no_weights():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 4, decode=True, rngs=rngs)
            self.a = nnx.LoRAParam(jnp.ones((4, 4)))
            self.seen = nnx.Intermediate(jnp.ones((4, 4)))

    net = Net(nnx.Rngs(0))
    net.attention.init_cache((1, 3, 4))
    state = nnx.state(net)
    paths, _, _ = jp.params.flatten_with_paths(state)
    chosen = [path for path, flag in zip(paths, jax.tree.leaves(jp.prunable(state)), strict=True) if flag]
    assert chosen == [f"attention/{name}/kernel" for name in ("key", "out", "query", "value")] + [
        "dense/kernel"
    ]


def test_an_output_layer_that_is_the_embedding_itself_is_warned_about():
    table, other = jnp.ones((6, 4)), jnp.ones((6, 4))
    tied = {"embed": {"embedding": table}, "lm_head": {"kernel": table}, "body": {"kernel": other}}
    with pytest.warns(
        UserWarning, match="'lm_head/kernel' is the same array as the embedding 'embed/embedding'"
    ):
        jp.prunable(tied)
    with pytest.warns(UserWarning, match=r"'lm_head\.weight' is the same array"):
        jp.prunable({"model.embed_tokens.weight": table, "lm_head.weight": table})
    assert jp.prunable({**tied, "lm_head": {"kernel": other}})["lm_head"]["kernel"] is True
    assert jp.prunable(tied, include="lm_head")["lm_head"]["kernel"] is True, "on request"
    assert jp.prunable(tied, exclude="lm_head")["lm_head"]["kernel"] is False
    # One array under any names is no tie.
    shared = dict.fromkeys(
        ("token_embd.weight", "blk.0.attn_output.weight", "decoder.layers.0.fc1.weight"), table
    )
    assert [name for name, flag in jp.prunable(shared).items() if flag] == list(shared)[1:]


@pytest.mark.slow
def test_a_tied_model_trains_like_any_other():
    table = jax.random.normal(jax.random.key(0), (6, 4))
    params = {
        "embed_tokens": {"weight": table},
        "fc": {"kernel": jnp.ones((4, 4))},
        "lm_head": {"weight": table},
    }
    tx = jp.gradual(optax.sgd(0.1), jp.schedules.constant(0.5))
    with pytest.warns(UserWarning, match="same array"):
        state = tx.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether the arrays are still one
        _, state = jax.jit(tx.update)(params, state, params)
    assert jp.sparsity(params, jp.get_masks(state)) == 0.5


def test_a_bias_beside_tells_a_linear_map_from_a_table_and_a_norm():
    def m(*shape):
        return jnp.zeros(shape)

    params = {
        "latent": {"w": m(8, 4), "b": m(4)},
        "norm_mlp": {"kernel": m(8, 4), "bias": m(4)},
        "norms": {"weight": m(3, 8), "bias": m(3, 8)},
        "lora_a": {"kernel": m(8, 4), "bias": m(4)},
        "class_embed.weight": m(5, 8),
        "class_embed.bias": m(5),
    }
    assert jp.prunable(params) == {
        "latent": {"w": True, "b": False},
        "norm_mlp": {"kernel": True, "bias": False},
        "norms": {"weight": False, "bias": False},
        "lora_a": {"kernel": False, "bias": False},
        "class_embed.weight": True,
        "class_embed.bias": False,
    }


def test_collections_of_variables_are_those_beside_the_parameters():
    kernel = {"Dense_0": {"kernel": jnp.ones((4, 4))}}
    assert jp.prunable({"state": kernel, "actor": kernel})["state"]["Dense_0"]["kernel"] is True
    assert jp.prunable({"params": kernel, "cache": kernel})["cache"]["Dense_0"]["kernel"] is False


def test_adapters_in_equinox_layers_are_left_out():
    class Adapted(eqx.Module):
        base: eqx.nn.Linear
        lora_a: eqx.nn.Linear

    model = Adapted(
        *(eqx.nn.Linear(4, 4, use_bias=False, key=key) for key in jax.random.split(jax.random.key(0)))
    )
    assert jax.tree.leaves(jp.prunable(eqx.filter(model, eqx.is_array))) == [True, False]


@pytest.mark.slow
def test_nnx_filters_choose_variables():
    state = nnx.state(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(0))))

    def number(include, exclude=()):
        return sum(jax.tree.leaves(jp.prunable(state, include=include, exclude=exclude)))

    assert number(nnx.Param) == 4
    assert number(nnx.All(nnx.Param, nnx.PathContains("kernel"))) == 2
    assert number(nnx.PathContains(0)) == 2
    assert number((..., nnx.PathContains("bias")), exclude=nnx.PathContains(1)) == 2
    with pytest.raises(ValueError, match="`include` filter BatchStat matched no parameter"):
        number(nnx.BatchStat)
    with pytest.raises(TypeError, match=r"takes only types of NNX variables, such as nnx\.Param"):
        number(dict)
    with pytest.raises(TypeError, match="must hold path patterns"):
        number(True)
    with pytest.raises(TypeError, match="Pass a filter as `include`"):
        jp.make_masks(state, 0.5, where=nnx.PathContains("kernel"))


def test_predicates_that_match_nothing_or_take_one_argument_are_errors():
    params = {"kernel": jnp.ones((2, 2))}
    for kwargs in ({"include": lambda path, leaf: False}, {"exclude": lambda path, leaf: leaf.ndim > 4}):
        with pytest.raises(ValueError, match=r"predicate <lambda> matched no parameter. There are: 'kernel'"):
            jp.prunable(params, **kwargs)
    with pytest.raises(TypeError, match=r"`include` predicate is_array must take \(path, leaf\)"):
        jp.prunable(params, include=eqx.is_array)


def test_the_leading_part_of_a_flat_name_ends_at_a_dot():
    params = {"blk.0.attn_q.weight": MATRIX, "blk.1.attn_q.weight": MATRIX, "blk.10.attn_q.weight": MATRIX}
    assert list(jp.prunable(params, include=r"blk\.1").values()) == [False, True, False]
    assert list(jp.prunable(params, exclude="blk.0").values()) == [False, True, True]
