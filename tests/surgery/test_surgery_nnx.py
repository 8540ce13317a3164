"""NNX modules sliced in place compute what the small function computes, or stay as they were."""

import jax
import jax.numpy as jnp
import library_models
import numpy as np
import pytest
from checks import difference, random_masks
from flax import nnx
from plain_layers import data

import jaxprune as jp
from jaxprune.surgery import plan_units, shrink_module

MODULES = {
    "MLP": (library_models.NnxMlp, (3, 4)),
    "attention": (library_models.NnxBlock, (2, 3, 4)),
    "CNN": (library_models.NnxCnn, (2, 4, 4, 2)),
}


def analysed(module, *inputs):
    graph, state = nnx.split(module)

    def fn(state, *inputs):
        return nnx.merge(graph, state)(*inputs)

    return fn, state, jp.find_groups(fn, state, *inputs)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", MODULES)
def test_module_in_place(name):
    module_type, shape = MODULES[name]
    module, x = module_type(nnx.Rngs(0)), data(*shape)
    fn, state, groups = analysed(module, x)
    chosen = random_masks(groups)
    if name == "attention":
        # Divisors follow the new sizes: LayerNorm's by its width, attention's by its head_dim.
        chosen = {group.name: chosen[group.name] for group in groups if group.size in (3, 10)}
    plan = plan_units(groups, chosen)
    expected = jax.jit(plan.compact(fn))(plan.shrink(state), x)
    shrink_module(plan, module)
    assert difference(jax.jit(lambda m, x: m(x))(module, x), expected) < 1e-6
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.Linear):
            assert (part.in_features, part.out_features) == part.kernel.shape


def between(width, *layers, out=None):
    """Layers between two dense ones, whose units can be removed."""
    rngs = nnx.Rngs(0)
    first, last = nnx.Linear(3, width, rngs=rngs), nnx.Linear(out or width, 2, rngs=rngs)
    return nnx.Sequential(first, nnx.relu, *layers, nnx.relu, last)


class Stack(nnx.Module):
    """Three blocks with a leading axis of their variables, run one after the other."""

    def __init__(self, rngs):
        make = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=0, out_axes=0))
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.blocks = make(rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.last(run(self.first(x), self.blocks))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


def convolutions(rngs):
    return between(
        8,
        nnx.Conv(8, 16, (3,), feature_group_count=4, rngs=rngs),
        nnx.Conv(16, 32, (3,), feature_group_count=16, rngs=rngs),
        nnx.GroupNorm(32, num_groups=32, rngs=rngs),
        nnx.ConvTranspose(32, 6, (3,), transpose_kernel=True, rngs=rngs),
        nnx.InstanceNorm(6, rngs=rngs),
        out=6,
    )


def products(rngs):
    return between(
        8,
        nnx.Einsum("bti,ihd->bthd", (8, 3, 4), (3, 4), rngs=rngs),
        nnx.LinearGeneral((3, 4), (2, 5), axis=(-2, -1), rngs=rngs),
        nnx.Einsum("bthd,hdo->bto", (2, 5, 8), rngs=rngs),
        nnx.LoRA(8, 4, 6, base_module=nnx.Linear(8, 6, rngs=rngs), rngs=rngs),
        nnx.WeightNorm(nnx.LoRALinear(6, 6, lora_rank=2, rngs=rngs), rngs=rngs),
        out=6,
    )


def recurrent(rngs):
    forward = nnx.RNN(nnx.LSTMCell(8, 6, rngs=rngs), rngs=rngs)
    backward = nnx.RNN(nnx.SimpleCell(8, 4, rngs=rngs), rngs=rngs)
    return between(
        8,
        nnx.Bidirectional(forward, backward, rngs=rngs),
        nnx.RNN(nnx.OptimizedLSTMCell(10, 8, rngs=rngs), rngs=rngs, reverse=True),
        nnx.RNN(nnx.GRUCell(8, 6, rngs=rngs), rngs=rngs),
        out=6,
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [convolutions, products, recurrent, Stack])
def test_every_kind_of_layer_takes_its_new_sizes(make):
    module, x = make(nnx.Rngs(0)), data(2, 5, 3)
    fn, state, groups = analysed(module, x)
    plan = plan_units(groups, random_masks(groups))
    expected = jax.jit(plan.compact(fn))(plan.shrink(state), x)
    shrink_module(plan, module)
    assert difference(jax.jit(lambda m, x: m(x))(module, x), expected) < 1e-5
    sizes = {
        name: getattr(part, name)
        for _, part in nnx.iter_graph(module)
        if isinstance(part, nnx.Conv | nnx.GroupNorm | nnx.Einsum | nnx.LinearGeneral | nnx.RNNCellBase)
        for name in ("feature_group_count", "num_groups", "kernel_shape", "hidden_features", "in_features")
        if hasattr(part, name)
    }
    assert sizes or make is Stack


def is_as_before(module, graph, leaves):
    after = jax.tree.leaves(nnx.state(module))
    return nnx.graphdef(module) == graph and all(
        a.shape == b.shape and np.array_equal(a, b)
        for a, b in zip(after, leaves, strict=True)
        if jnp.issubdtype(a.dtype, jnp.floating)
    )


class Reshaped(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)).reshape(*x.shape[:-1], 2, 4).sum(-2))


REFUSED = {
    "a norm's width": lambda rngs: between(8, nnx.LayerNorm(8, rngs=rngs)),
    "a group's width": lambda rngs: between(8, nnx.GroupNorm(8, num_groups=2, rngs=rngs)),
    "a size in the module's code": Reshaped,
    "outputs that are zero so far": lambda rngs: nnx.Sequential(
        nnx.Linear(3, 8, rngs=rngs),
        nnx.RMSNorm(8, rngs=rngs),
        nnx.Linear(8, 2, kernel_init=nnx.initializers.zeros, rngs=rngs),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_would_compute_something_else_is_left_as_it_was(name):
    module, x = REFUSED[name](nnx.Rngs(0)), data(2, 3)
    _, _, groups = analysed(module, x)
    plan = plan_units(groups, random_masks(groups))
    graph, leaves = nnx.graphdef(module), jax.tree.leaves(nnx.state(module))
    with pytest.raises(ValueError, match="can't be shrunk in place"):
        shrink_module(plan, module)
    assert is_as_before(module, graph, leaves)


@pytest.mark.slow
def test_the_inputs_are_the_plan_s_or_given(tmp_path):
    module, x = library_models.NnxMlp(nnx.Rngs(0)), data(3, 4)
    graph, state = nnx.split(module)

    def loss(state, batch):
        return jnp.mean((nnx.merge(graph, state)(batch["x"]) - batch["y"]) ** 2)

    groups = jp.find_groups(loss, state, {"x": x, "y": jnp.ones((3, 2))})
    plan = plan_units(groups, random_masks(groups))
    with pytest.raises(ValueError, match="pass example inputs, or call="):
        shrink_module(plan, module)
    plan.save(tmp_path / "plan.npz")
    loaded = jp.Plan.load(tmp_path / "plan.npz")
    with pytest.raises(ValueError, match="`inputs` are needed"):
        shrink_module(loaded, module)
    assert is_as_before(module, graph, jax.tree.leaves(state))
    shrink_module(loaded, module, jax.ShapeDtypeStruct(x.shape, x.dtype))
    by_call = library_models.NnxMlp(nnx.Rngs(0))
    shrink_module(plan, by_call, call=lambda module, batch: module(batch["x"]))
    assert difference(module(x), by_call(x)) == 0
    with pytest.raises(ValueError, match="`module` must be the full module"):
        shrink_module(plan, by_call)


def test_a_plan_for_a_part_of_the_variables():
    rngs = nnx.Rngs(0)
    module = nnx.Sequential(
        nnx.Linear(3, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
    )
    module.eval()
    x = data(2, 3)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    groups = jp.find_groups(lambda params, x: nnx.merge(graph, params, rest)(x), params, x)
    plan = plan_units(groups, random_masks(groups))
    shrink_module(plan, module)
    assert module.layers[0].out_features == module.layers[2].in_features == 4
    assert module(x).shape == (2, 2)


def test_dropout_is_no_size():
    def layers(rngs):
        return nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    module = nnx.Sequential(*layers(nnx.Rngs(0)))
    _, state, groups = analysed(module, data(2, 3))
    shrink_module(jp.plan_removal(groups, state, 0.5, budget="units"), module)
    assert module.layers[0].kernel.shape == (3, 4)
    assert not module.layers[2].deterministic, "it still drops out"
