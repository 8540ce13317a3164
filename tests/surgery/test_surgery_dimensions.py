"""Sizes for a configuration: a model that is built anew with them takes the small parameters."""

import branch_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import difference
from flax import linen as nn
from flax import nnx
from plain_layers import data, weights

import jaxprune as jp
from jaxprune.surgery import Dimension, LayerPlan, plan_units

WIDTH, DEPTH, HEADS, HEAD, MLP = 12, 3, 4, 3, 10


class LinenTransformer(nn.Module):
    num_heads: int = HEADS
    head_dim: int = HEAD
    mlp_dim: int = MLP
    num_layers: int = DEPTH

    @nn.compact
    def __call__(self, x):
        for i in range(self.num_layers):
            attention = nn.MultiHeadDotProductAttention(
                self.num_heads, qkv_features=self.num_heads * self.head_dim, name=f"attention_{i}"
            )
            x = x + attention(nn.LayerNorm(name=f"norm_{i}")(x))
            x = x + nn.Dense(WIDTH, name=f"down_{i}")(nn.gelu(nn.Dense(self.mlp_dim, name=f"up_{i}")(x)))
        return nn.Dense(2, name="head")(x)


class NnxLayer(nnx.Module):
    def __init__(self, num_heads, head_dim, mlp_dim, rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads, WIDTH, num_heads * head_dim, decode=False, rngs=rngs
        )
        self.up = nnx.Linear(WIDTH, mlp_dim, rngs=rngs)
        self.down = nnx.Linear(mlp_dim, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class NnxTransformer(nnx.Module):
    def __init__(self, num_heads=HEADS, head_dim=HEAD, mlp_dim=MLP, num_layers=DEPTH):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(NnxLayer(num_heads, head_dim, mlp_dim, rngs) for _ in range(num_layers))
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def filled(tree):
    """Random arrays in place of abstract ones."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.4, x.dtype), tree)


def linen():
    def build(**sizes):
        return jax.jit(LinenTransformer(**sizes).apply)

    params = filled(jax.eval_shape(LinenTransformer().init, jax.random.key(0), data(1, 2, WIDTH)))
    return build, params, "attention_*/{}/kernel", "up_*/kernel"


def in_nnx():
    def build(**sizes):
        graph = nnx.graphdef(nnx.eval_shape(lambda: NnxTransformer(**sizes)))
        return jax.jit(lambda state, x: nnx.merge(graph, state)(x))

    params = filled(nnx.state(nnx.eval_shape(NnxTransformer)))
    return build, params, "layers/*/attention/{}/kernel", "layers/*/up/kernel"


@pytest.mark.parametrize(("library", "scope"), [(linen, "global"), (in_nnx, "local")])
def test_a_model_of_the_small_configuration_takes_the_small_parameters(library, scope):
    build, params, attention, up = library()
    fn, x = build(), data(2, 4, WIDTH)
    groups = jp.find_groups(fn, params, x)
    heads, hidden = f"{attention.format('query')}[1]", f"{up}[1]"
    plan = jp.plan_removal(
        groups, params, 0.3, scope, budget="flops", only=(heads, hidden), alike=(heads, hidden)
    )
    dimensions = plan.dimensions()
    sizes = {
        "num_heads": dimensions[heads].new,
        "head_dim": dimensions[f"{attention.format('query')}[2]"].new,
        "mlp_dim": dimensions[hidden].new,
    }
    assert (dimensions[heads].old, dimensions[hidden].old, sizes["head_dim"]) == (HEADS, MLP, HEAD)
    assert sizes["num_heads"] < HEADS or sizes["mlp_dim"] < MLP
    small = plan.shrink(params)
    rebuilt = build(**sizes)(small, x)
    assert difference(rebuilt, jax.jit(plan.compact(fn))(small, x)) < 1e-6
    assert difference(rebuilt, fn(jp.apply_masks(params, plan.masks(params)), x)) < 1e-6
    assert difference(rebuilt, fn(params, x)) > 1e-3


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("first", ["layers", "units"])
def test_fewer_layers_and_units(first):
    """Of three layers, whole ones and FFN units are left out, in either order."""
    build, params, attention, up = in_nnx()
    fn, x = build(), data(2, 4, WIDTH)

    def layers(fn, params):
        branches = jp.find_branches(fn, params, x)
        score = {b.name: float("layers/1" not in b.name) for b in branches}
        return jp.plan_layers(branches, params, number=2, score=score)

    def units(fn, params):
        groups = jp.find_groups(fn, params, x)
        return jp.plan_removal(groups, params, 0.5, only=f"{up}[1]", alike=f"{up}[1]", budget="units")

    one, two = (layers, units) if first == "layers" else (units, layers)
    plan = one(fn, params)
    plan = plan.then(two(plan.compact(fn), plan.shrink(params)))
    dimensions = plan.dimensions()
    assert dimensions["layers/*"] == Dimension((3,), (2,))
    assert "layers/1/up/kernel[1]" not in dimensions and f"{up}[1]" in dimensions
    assert dimensions[f"{up}[1]"] == Dimension((MLP,), (MLP // 2,)) == dimensions["layers/2/down/kernel[0]"]
    assert dimensions[f"{attention.format('query')}[1]"] == Dimension((HEADS,), (HEADS,))
    assert (
        len(dimensions) == 5
    )  # layers, heads, sizes of queries and values, FFN units; the stream is the input's
    small = plan.shrink(params)
    rebuilt = build(num_layers=2, mlp_dim=MLP // 2)
    left = nnx.to_pure_dict(small)
    state = nnx.state(nnx.eval_shape(lambda: NnxTransformer(num_layers=2, mlp_dim=MLP // 2)))
    kept = dict(enumerate(left["layers"][n] for n in (0, 2)))
    nnx.replace_by_pure_dict(state, {**left, "layers": kept})
    assert difference(rebuilt(state, x), jax.jit(plan.compact(fn))(small, x)) < 1e-6


def fused(heads, size):
    """Attention of one weight for queries, keys and values; heads are composed axes."""
    width = heads * size

    def fn(p, x):
        q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
        q, k, v = (y.reshape(*y.shape[:-1], heads, size) for y in (q, k, v))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / size**0.5)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:-1], width) @ p["out"]

    return fn, weights(qkv=(5, 3 * width), out=(width, 5))


def test_heads_in_one_axis_are_a_product():
    fn, params = fused(4, 3)
    x = data(2, 6, 5)
    groups = jp.find_groups(fn, params, x)
    heads = next(group for group in groups if group.size == 4)
    plan = plan_units(groups, {heads: [True, False, True, True]})
    dimensions = plan.dimensions()
    assert dimensions["out[0]"] == Dimension((4, 3), (3, 3))
    assert (dimensions["out[0]"].old, dimensions["out[0]"].new) == (12, 9)
    assert dimensions["qkv[1]"] == Dimension((36,), (27,))
    assert len(dimensions) == 2 and "out[1]" not in dimensions and "qkv[0]" not in dimensions
    assert "out[0]    4 x 3   3 x 3" in str(dimensions)
    small_fn, _ = fused(3, 3)
    assert difference(small_fn(plan.shrink(params), x), plan.compact(fn)(plan.shrink(params), x)) < 1e-6


def test_a_later_plan_and_a_file(tmp_path):
    fn, params = fused(4, 3)
    x = data(2, 6, 5)
    groups = jp.find_groups(fn, params, x)
    heads = next(group for group in groups if group.size == 4)
    plan = plan_units(groups, {heads: [True, False, True, True]})
    groups = jp.find_groups(plan.compact(fn), plan.shrink(params), x)
    inner = [group for group in groups if "out" in {m.path for m in group.members} and group.name != heads]
    masks = {group: np.arange(group.size) > 0 for group in groups}
    both = plan.then(plan_units(groups, masks))
    assert inner and both.dimensions()["out[0]"] == Dimension((4, 3), (2, 2))
    whole = jp.Plan(plan.shapes, {path: (None,) * len(shape) for path, shape in plan.shapes.items()})
    assert whole.then(plan).dimensions()["out[0]"] == Dimension((4, 3), (3, 3))
    both.save(tmp_path / "plan.npz")
    loaded = jp.Plan.load(tmp_path / "plan.npz").dimensions()
    assert loaded["out[0]"] == Dimension((12,), (4,)) and set(loaded) == {"out[0]", "qkv[1]"}


def test_layers_that_differ_have_no_one_size():
    fn, params = branch_models.language_model(branch_models.pre_norm, lambda f: f), branch_models.listed()
    groups = jp.find_groups(fn, params, branch_models.IDS)
    plan = plan_units(groups, {f"layers/{i}/mlp/down[0]": np.arange(16) >= i for i in range(3)})
    dimensions = plan.dimensions()
    assert dimensions["layers/2/mlp/up[1]"] == Dimension((16,), (14,))
    assert dimensions["layers/*/attn/q[1]"] == Dimension((8,), (8,))
    with pytest.raises(KeyError, match=r"has no one size: 16 in layers/0/mlp/up\[1\], 15 in .*`alike`"):
        dimensions["layers/*/mlp/up[1]"]


def test_every_name_that_iteration_gives_has_a_size():
    """Two of three layers keep the same number: one row of the table, but no one size for all."""
    fn, params = branch_models.language_model(branch_models.pre_norm, lambda f: f), branch_models.listed()
    groups = jp.find_groups(fn, params, branch_models.IDS)
    plan = plan_units(groups, {f"layers/{i}/mlp/down[0]": np.arange(16) >= max(i, 1) for i in range(3)})
    dimensions = plan.dimensions()
    sizes = {name: dimension.new for name, dimension in dimensions.items() if "mlp" in name}
    assert len(dict(dimensions)) == len(dimensions)
    assert sizes == {f"layers/{i}/mlp/down[0]": n for i, n in enumerate((15, 15, 14))}
    assert "layers/*/mlp/down[0] x 2" in str(dimensions)
    with pytest.raises(KeyError, match=r"no dimension 'layers/\*/mlp'. There are: embedding\[1\]"):
        dimensions["layers/*/mlp"]
    assert "layers/*/mlp/up[1]" not in dimensions
    assert {"layers/0/mlp/down[0]", "layers/2/mlp/down[0]", "layers/*/attn/k[1]"} <= set(dimensions)
    assert len(dimensions) == len(list(dimensions)) == 1 + 2 + 3
    assert max(map(len, str(dimensions).splitlines())) <= 100


def test_stacked_layers():
    params = branch_models.stacked()
    kept = {path: (None,) * x.ndim for path, x in zip(*jp.params.flatten_with_paths(params)[:2], strict=True)}
    shapes = {path: x.shape for path, x in zip(*jp.params.flatten_with_paths(params)[:2], strict=True)}
    lost = np.array([True, False, True])
    kept = {path: (lost, *masks[1:]) if path.startswith("layers") else masks for path, masks in kept.items()}
    plan = LayerPlan((), shapes, kept, frozenset(), params)
    assert plan.small_depth == {"layers": (0, 2)}
    assert dict(plan.dimensions()) == {"layers": Dimension((3,), (2,))}


def test_nothing_to_tell():
    plan = jp.Plan({"s": (), "w": (2, 0)}, {"s": (), "w": (None, None)})
    assert dict(plan.dimensions()) == {} == dict(plan.then(plan).dimensions()) and "axis" in str(
        plan.dimensions()
    )
