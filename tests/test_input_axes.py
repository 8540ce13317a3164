"""N:M runs along the axis that a product contracts, wherever the tree tells which one that is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.params import flatten_with_paths
from jaxprune.structures.nm import with_input_axes
from jaxprune.tree_nodes import leaves_of

KEY = jax.random.key(0)


def masks_of(tree, **kwargs):
    return jp.make_masks(jp.scores.magnitude(tree), 0.5, structure=jp.NM(2, 4, **kwargs))


def runs_along(mask, axis):
    mask = np.moveaxis(np.asarray(mask), axis, -1)
    return (mask.reshape(-1, 4).sum(-1) == 2).all()


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def input_axes(tree):
    """The input axis of each leaf of rank 2 or more, by the shapes in the tree."""
    structure = with_input_axes(jp.NM(2, 4), leaves_of(tree))
    paths, leaves, _ = flatten_with_paths(tree)
    shapes = {path: tuple(leaf.shape) for path, leaf in zip(paths, leaves, strict=True)}
    return {path: structure.group_axis(path, shape) for path, shape in shapes.items() if len(shape) > 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (lambda: eqx.nn.Linear(16, 8, key=KEY), 1),
        (lambda: eqx.nn.Conv2d(8, 4, 3, key=KEY), 1),
        (lambda: eqx.nn.Conv1d(8, 4, 4, key=KEY), 1),
        (lambda: eqx.nn.ConvTranspose2d(8, 4, 3, key=KEY), 1),
        (lambda: eqx.filter_vmap(lambda k: eqx.nn.Linear(8, 4, key=k))(jax.random.split(KEY, 4)), 2),
        (lambda: eqx.filter_vmap(lambda k: eqx.nn.Conv1d(8, 4, 4, key=k))(jax.random.split(KEY, 4)), 2),
    ],
)
def test_equinox_layers(layer, axis):
    params = eqx.filter({"named_anything": layer()}, eqx.is_array)
    assert input_axes(params)["named_anything/weight"] == axis


@pytest.mark.slow
def test_equinox_recurrent_cells():
    axes = input_axes(eqx.filter(eqx.nn.GRUCell(8, 4, key=KEY), eqx.is_array))
    assert axes == {"weight_ih": 1, "weight_hh": 1}


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("model.layers.0.mlp.up_proj.weight", (8, 16), 1),
        ("model.layers.0.mlp.square.weight", (8, 8), 1),
        ("blk.0.attn_q.weight", (8, 8), 1),
        ("stem.conv.weight", (4, 8, 3, 3), 1),
        ("lstm.weight_hh_l0", (16, 4), 1),
        ("blk.0.ffn_gate_exps.weight", (4, 8, 16), 2),
        ("Dense_0.kernel", (8, 8), 0),
        ("att.query.kernel", (16, 8, 4), 0),
    ],
)
def test_flat_names(name, shape, axis):
    assert input_axes({name: draw(*shape)}) == {name: axis}


@pytest.mark.parametrize(
    ("tree", "axis"),
    [
        ({"weight": (8, 16), "bias": (8,)}, 1),
        ({"weight": (8, 16), "bias": (16,)}, 0),
        ({"kernel": (16, 8), "bias": (16,)}, 1),
        ({"kernel": (8, 4, 12), "bias": (4, 12)}, 0),
        ({"kernel": (4, 8, 12), "bias": (4, 12)}, 1),
        ({"w": (8, 8), "b": (8,)}, 0),
        ({"kernel": (8, 8)}, 0),
    ],
)
def test_a_bias_tells_the_outputs(tree, axis):
    params = {"layer": {name: draw(*shape) for name, shape in tree.items()}}
    axes = input_axes(params)
    assert next(found for path, found in axes.items() if "b" not in path) == axis


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("fc/weight", (8, 8)),
        ("fc/weight", (8, 16)),
        ("h.0.attn.c_proj.weight", (8, 8)),
        ("h/0/c_proj/kernel", (8, 8)),
    ],
)
def test_what_nothing_tells_is_asked_for(name, shape):
    tree = draw(*shape)
    for part in reversed(name.split("/")):
        tree = {part: tree}
    with pytest.raises(
        ValueError, match=r"nothing tells whether .* is \(out, in\) or \(in, out\)\. Name the `axis`"
    ):
        masks_of(tree)
    if name == "fc/weight" and shape == (8, 8):
        assert runs_along(masks_of(tree, axis=-1)["fc"]["weight"], 1)
        assert jp.sparsity(tree, jp.make_masks(tree, 0.5)) == 0.5, "other structures do not ask"


@pytest.mark.slow
def test_loops_run_along_the_same_axis():
    import optax

    params = eqx.filter(eqx.nn.Linear(16, 6, key=KEY), eqx.is_array)
    tx = jp.gradual(optax.sgd(0.0), jp.schedules.constant(0.5), structure=jp.NM(2, 4))
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert runs_along(jp.get_masks(state).weight, 1), "6 outputs are no multiple of 4"
