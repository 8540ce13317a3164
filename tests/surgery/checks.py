"""What every model must pass: plans at random, two oracles, gradients, permutations."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.surgery import plan_units
from jaxprune.surgery.evaluation.compact import run
from jaxprune.surgery.evaluation.interpreter import Masked
from jaxprune.surgery.inference.axes import leaves_of, normal, parts_of, size_of
from jaxprune.surgery.inference.model import analyse, keep_of


def random_plan(groups, seed=0, share=0.5):
    return plan_units(groups, random_masks(groups, seed, share))


def random_masks(groups, seed=0, share=0.5):
    rng = np.random.default_rng(seed)
    keep = {}
    for group in groups:
        mask = np.zeros(group.size, bool)
        mask[rng.permutation(group.size)[: max(group.minimum, round(group.size * (1 - share)))]] = True
        keep[group.name] = mask
    return keep


def masked_function(plan, fn, params, *inputs):
    model = analyse(fn, params, inputs, plan.state)
    keep = keep_of(model, plan.kept)
    return lambda params, *inputs: run(model, Masked(keep), params, inputs)


def gradient_error(plan, fn, params, *inputs):
    """Largest difference of gradients, small against masked, relative to the largest gradient."""

    def gradient(f, params):
        def loss(params):
            outs = jax.tree.leaves(f(params, *inputs))
            return sum(jnp.sum(jnp.sin(o)) for o in outs if jnp.issubdtype(o.dtype, jnp.floating))

        return jax.jit(jax.grad(loss, allow_int=True))(params)

    small = gradient(plan.compact(fn), plan.shrink(params))
    full = plan.shrink(gradient(masked_function(plan, fn, params, *inputs), params))
    pairs = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(full), strict=True)
        if a.dtype != jax.dtypes.float0
    ]
    largest = max(float(np.max(np.abs(b))) for _, b in pairs)
    assert largest > 0
    return max(float(np.max(np.abs(a - b))) for a, b in pairs) / largest


def permuted(groups, params, name, order, leave_out=None):
    """The parameters with the units of one group in another order, in all places or all but one."""
    atom = groups[name].atom
    leaves, treedef = jax.tree.flatten(params)
    arrays = [i for i, leaf in enumerate(leaves) if is_array_leaf(leaf)]
    places = itertools.count()
    for path, i in zip(groups.model.traced.paths, arrays, strict=True):
        for dim, axis in enumerate(groups.model.axes[path]):
            leaves[i] = np.take(np.asarray(leaves[i]), _order(axis, atom, order, places, leave_out), axis=dim)
    return jax.tree.unflatten(treedef, leaves)


def places_of(groups, name):
    """The parameter, by rank, of each place where a group occurs."""
    atom = groups[name].atom
    return [
        len(axes)
        for axes in groups.model.axes.values()
        for axis in axes
        for leaf in leaves_of(axis)
        if leaf is atom
    ]


def _order(axis, atom, order, places, leave_out):
    """Where each entry of an axis comes from when the units of an atom are reordered."""
    out = np.zeros(1, int)
    for factor in normal(axis):
        if factor is atom:
            index = np.arange(factor.size) if next(places) == leave_out else np.asarray(order)
        elif factor.parts is not None:
            parts = parts_of(factor)
            starts = np.cumsum([0, *map(size_of, parts)])
            pieces = [
                start + _order(part, atom, order, places, leave_out)
                for start, part in zip(starts, parts, strict=False)
            ]
            index = np.concatenate(pieces)
        else:
            index = np.arange(factor.size)
        out = (out[:, None] * factor.size + index).ravel()
    return out


def difference(a, b):
    """Largest difference of two trees of outputs, relative to the largest output."""
    pairs = [
        (np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    largest = max(float(np.max(np.abs(y))) for _, y in pairs)
    return max(float(np.max(np.abs(x - y))) for x, y in pairs) / largest
