"""Paths are the same in every framework, and `prunable` picks weights and nothing else."""

import dataclasses

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import jaxprune as jp
from jaxprune.params import flatten_with_paths


def chosen(params, **kwargs):
    paths, _, _ = flatten_with_paths(params)
    return [
        path for path, flag in zip(paths, jax.tree.leaves(jp.prunable(params, **kwargs)), strict=True) if flag
    ]


def key():
    return jax.random.key(0)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, tokens):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        x = x.reshape(x.shape[0], -1, 4) + nn.Embed(7, 4)(tokens)
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)(x)
        return nn.Dense(3)(nn.LayerNorm()(x))


@pytest.mark.slow
def test_linen_paths_drop_the_collection_and_attention_biases_and_embeddings_are_left_out():
    variables = LinenNet().init(key(), jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 4), int))
    attention = [f"MultiHeadDotProductAttention_0/{name}/kernel" for name in ("key", "out", "query", "value")]
    want = ["Conv_0/kernel", "Dense_0/kernel", *attention]
    assert chosen(variables["params"]) == want
    assert chosen({"params": variables["params"]}) == want
    assert chosen(variables) == want, "batch statistics are no weights"


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.embed = nnx.Embed(5, 4, rngs=rngs)


def test_nnx_state_paths_have_no_value_suffix():
    model = NNXNet(nnx.Rngs(0))
    for tree in (
        nnx.state(model, nnx.Param),
        nnx.as_pure(nnx.state(model, nnx.Param)),
        nnx.state(model),
        model,
    ):
        assert chosen(tree) == ["layers/0/kernel", "layers/1/kernel"]
    where = jp.prunable(nnx.state(model, nnx.Param))
    assert jax.tree.structure(where) == jax.tree.structure(nnx.state(model, nnx.Param))


class EqxNet(eqx.Module):
    layers: list
    norm: eqx.nn.LayerNorm
    embed: eqx.nn.Embedding
    value: jax.Array
    activation: callable

    def __init__(self):
        self.layers = [eqx.nn.Linear(2, 3, key=key()), eqx.nn.Conv2d(1, 2, 3, key=key())]
        self.norm, self.embed = eqx.nn.LayerNorm((3, 3)), eqx.nn.Embedding(4, 3, key=key())
        self.value, self.activation = jnp.ones((2, 2)), jax.nn.relu


def test_equinox_modules_keep_a_field_called_value_and_skip_functions():
    assert chosen(EqxNet()) == ["layers/0/weight", "layers/1/weight", "value"]


@pytest.mark.slow
def test_haiku_names():
    net = hk.transform(lambda x: hk.Linear(2)(hk.LayerNorm(-1, True, True)(hk.Embed(5, 4)(x))))
    assert chosen(net.init(key(), jnp.zeros(3, int))) == ["linear/w"]


def test_vmapped_biases_and_norms_are_not_weights_though_they_have_two_axes():
    params = {
        "layers": {"Dense_0": {"kernel": jnp.ones((4, 3, 2)), "bias": jnp.ones((4, 2))}},
        "LayerNorm_0": {"scale": jnp.ones((4, 2))},
        "norm": {"weight": jnp.ones((4, 2))},
        "input_layernorm": {"weight": jnp.ones((4, 2))},
        "wte": {"weight": jnp.ones((9, 2))},
        "patch_embedding": {"kernel": jnp.ones((2, 2, 3, 4))},
        "normalizer_head": {"w": jnp.ones((4, 2))},
    }
    assert chosen(params) == ["layers/Dense_0/kernel", "normalizer_head/w", "patch_embedding/kernel"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    first: list
    second: tuple


def test_plain_containers():
    tree = Pair([jnp.ones((2, 2))], (jnp.ones(2), {"w": jnp.ones((2, 2), jnp.bfloat16)}))
    assert flatten_with_paths(tree)[0] == ["first/0", "second/0", "second/1/w"]
    assert chosen(tree) == ["first/0", "second/1/w"]
    assert jp.prunable(jnp.ones((2, 2))) is True
    assert chosen({"a": jax.ShapeDtypeStruct((2, 2), jnp.float32)}) == ["a"], "abstract arrays will do"
    assert chosen({"a": None, "b": jnp.ones((2, 2)), "c": jnp.ones((2, 2), int)}) == ["b"]
    haiku_stacked = {"linear": {"w": jnp.ones((4, 2, 2)), "b": jnp.ones((4, 2))}}
    assert chosen(haiku_stacked) == ["linear/w"], "beside a w, b is a bias"


PARAMS = {
    "Dense_0": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)},
    "Dense_1": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)},
    "Dense_10": {"kernel": jnp.ones((3, 3))},
    "steps": jnp.zeros((2, 2), int),
    "scalar": jnp.ones(()),
}


@pytest.mark.parametrize(
    ("kwargs", "want"),
    [
        ({"exclude": "Dense_1/kernel"}, ["Dense_0/kernel", "Dense_10/kernel"]),
        ({"exclude": ("Dense_1",)}, ["Dense_0/kernel", "Dense_10/kernel"]),
        ({"exclude": [".*"]}, []),
        ({"include": "Dense_1/bias"}, ["Dense_1/bias"]),
        ({"include": (..., "Dense_1/bias"), "exclude": "Dense_.*/kernel"}, ["Dense_1/bias"]),
        (
            {"include": lambda path, leaf: path.endswith("bias") and leaf.size == 3},
            ["Dense_0/bias", "Dense_1/bias"],
        ),
        ({"include": ()}, []),
    ],
)
def test_patterns(kwargs, want):
    assert chosen(PARAMS, **kwargs) == want


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"include": "encoder/.*"},
            r"`include` pattern 'encoder/\.\*' matched no parameter.*'Dense_0/kernel'.*7 in all",
        ),
        ({"exclude": "Dense_2"}, "`exclude` pattern 'Dense_2' matched no parameter"),
        ({"include": "*/kernel"}, "not a regular expression"),
        ({"include": "steps"}, "'steps', which is int32"),
        ({"include": "scalar"}, "which is a scalar"),
    ],
)
def test_bad_patterns_say_what_there_is(kwargs, message):
    with pytest.raises(ValueError, match=message):
        jp.prunable(PARAMS, **kwargs)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no leaves"):
        jp.prunable({})
    with pytest.raises(TypeError, match="must hold path patterns"):
        jp.prunable(PARAMS, exclude=(3,))


@pytest.mark.slow
def test_where_is_a_tree_of_bools_or_a_prefix_of_one_or_a_function_that_gives_either():
    w = jnp.arange(1.0, 17).reshape(4, 4)
    params = {"body": {"a": {"kernel": w, "bias": w[0]}, "none": None}, "head": {"kernel": w}}
    scores = jp.scores.magnitude(params)
    full = {"body": {"a": {"kernel": True, "bias": True}, "none": None}, "head": {"kernel": False}}
    want = jp.make_masks(scores, 0.5, where=full)
    prefix = {"body": True, "head": False}
    for where in (prefix, lambda _: full, lambda p: dict.fromkeys(p, True) | {"head": False}):
        assert jax.tree.all(
            jax.tree.map(lambda a, b: jnp.array_equal(a, b), want, jp.make_masks(scores, 0.5, where=where))
        )
    by_default = jp.make_masks(scores, 0.5)
    assert jnp.array_equal(
        jp.make_masks(scores, 0.5, where=jp.prunable)["head"]["kernel"], by_default["head"]["kernel"]
    )
    assert jax.tree.leaves(jp.allocate.uniform(params, 0.5, where={"body": False, "head": True})) == [
        0.0,
        0.0,
        0.5,
    ]


def test_a_prefix_reaches_over_containers_of_another_kind():
    state = nnx.state(NNXNet(nnx.Rngs(0)), nnx.Param)
    where = {"layers": {"0": {"kernel": True, "bias": False}, "1": False}, "norm": False, "embed": False}
    masks = jp.make_masks(jp.scores.magnitude(state), 0.5, where=where)
    assert jnp.sum(jax.tree.leaves(masks["layers"][0]["kernel"])[0]) == 6
    assert jax.tree.leaves(masks["layers"][1]) == [True, True]


def test_masks_are_a_tree_or_a_prefix_of_one_or_a_function_that_gives_either():
    params = {"body": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "head": {"kernel": jnp.ones((2, 2))}}
    column = jnp.array([[True, False]])
    for masks in (
        {"body": True, "head": {"kernel": column}},
        lambda p: jax.tree.map(lambda _: True, p) | {"head": {"kernel": column}},
    ):
        pruned = jp.apply_masks(params, masks)
        assert pruned["head"]["kernel"].tolist() == [[1, 0], [1, 0]]
        assert pruned["body"]["kernel"].tolist() == [[1, 1], [1, 1]]
        assert jp.sparsity(params, masks) == 0.5


def test_a_module_that_can_be_called_is_a_tree_and_no_function():
    layer = eqx.nn.Linear(4, 4, key=key())
    params = eqx.filter(layer, eqx.is_array)
    where = jp.prunable(params)
    assert callable(where)
    assert jp.sparsity(params, jp.make_masks(jp.scores.magnitude(params), 0.5, where=where)) == 0.5


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ({"body": True}, ValueError, "`where` must have the tree structure .* lacks 'head/kernel'"),
        ({"body": True, "head": True, "tail": True}, ValueError, "`where` .* it has an extra leaf 'tail'"),
        (lambda p: None, TypeError, "`where` is a function of the parameters and must return a tree"),
        (lambda p: jp.prunable, TypeError, "must return a tree like them, got <function prunable"),
        (
            lambda p: {"body": 1, "head": True},
            TypeError,
            "`where` must hold Python bools, got 1 at 'body/kernel'",
        ),
        (False, ValueError, "there is nothing to prune"),
    ],
)
def test_a_where_that_does_not_fit_is_an_error_that_says_why(where, error, message):
    params = {"body": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(error, match=message):
        jp.make_masks(params, 0.5, where=where)
