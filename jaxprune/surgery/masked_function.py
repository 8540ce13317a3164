"""The masked function: computes, at full size and under masks that may be traced, what the small one will."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.jaxprs import Traced, is_array_leaf
from jaxprune.jaxprs.per_signature import per_signature
from jaxprune.masking.apply import masked_leaf
from jaxprune.params import PyTree, is_kept_whole, mask_leaves
from jaxprune.surgery.coupled import check_member
from jaxprune.surgery.coupled_units import coupled_units
from jaxprune.surgery.evaluation.compact import run
from jaxprune.surgery.evaluation.traced_keep import TracedKeep
from jaxprune.surgery.evaluation.training import MaskedTraining
from jaxprune.surgery.evaluation.zeros import Zeros
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.inference.axes import Atom
from jaxprune.surgery.inference.model import Model, analyse
from jaxprune.surgery.layouts import groups_in, layout_of, matched
from jaxprune.surgery.planning.from_masks import plan_from_masks
from jaxprune.tree_nodes import leaves_of
from jaxprune.weight_names import is_statistic


def masked_fn(fn: Callable, groups: Groups) -> Callable:
    """The function that trains and evaluates under masks as the small function will compute.

    Zeroed weights are not always removed ones: a LayerNorm that computes its variance in two passes still
    averages over them, and a softmax over units gives them a share. Here every reduction over units sees its
    identity at pruned ones: a sum 0, a maximum minus infinity. What
    `jp.plan_from_masks(groups, masks).compact(fn)` computes after `shrink` is the same up to rounding,
    whatever the parameters hold at pruned places. Constants of `fn` are the same in both:
    also the number of units that a mean over all of them divides by.

    Gradients reach the parameters, and are zero at pruned ones. The function runs under `jit`, `grad`, `vmap`
    and `scan`, on inputs of any shape that `fn` takes (each new shape is traced and analysed anew, so call it
    inside `jax.jit`).

    Args:
      fn: the function `fn(params, *inputs)` that was analysed.
      groups: what `jp.find_groups(fn, params, *inputs)` found.

    Returns:
      Function `masked(params, masks, *inputs)`: `params` are the full parameters, `masks` a tree of bool
      arrays like them, as `jp.make_masks` and `jp.gradual` give with `structure=jp.Coupled(groups)`. Masks may
      be traced; that no unit is masked in part is checked where they are known.

    Raises:
      TypeError: `groups` is not what `find_groups` gives.
      ValueError: when it is called: parameters that the groups were not found in, masks that don't broadcast
        to them, a unit that is masked in part, a function that does not have these groups.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[3.0, 1.0, 2.0]]), "down": jnp.array([[1.0], [1.0], [9.0]])}
      >>> fn = lambda p, x: jax.nn.softmax(x @ p["up"]) @ p["down"]
      >>> x = jnp.ones((1, 1))
      >>> groups = jp.find_groups(fn, params, x)
      >>> masks = jp.make_masks(jp.scores.magnitude(params), 0.3, structure=jp.Coupled(groups))
      >>> plan = jp.plan_from_masks(groups, masks)
      >>> small = plan.compact(fn)(plan.shrink(params), x)
      >>> masked = jp.masked_fn(fn, groups)(params, masks, x)
      >>> zeroed = fn(jp.apply_masks(params, masks), x)
      >>> [round(float(y[0, 0]), 2) for y in (small, masked, zeroed)]
      [3.15, 3.15, 3.04]
    """
    if not isinstance(groups, Groups):
        raise TypeError(f"`groups` must be what jp.find_groups(fn, params, *inputs) gives, got {groups!r}.")

    @per_signature
    def analysed(params: PyTree, inputs: tuple[Any, ...]) -> tuple[Traced, tuple[Model, dict[Atom, int]]]:
        model = analyse(fn, params, inputs, groups.state)
        return model.traced, (model, _atoms(groups, model))

    @functools.wraps(fn)
    def masked(params: PyTree, masks: PyTree, *inputs: Any) -> Any:
        of_leaves = _mask_leaves(groups, params, masks)
        kept = _kept_units(groups, params, of_leaves)
        leaves, treedef = jax.tree.flatten(params)
        pairs = zip(leaves, of_leaves, strict=True)
        # A derivative rule of the user's may tell pruned weights something.
        params = jax.tree.unflatten(treedef, [masked_leaf(w, m) if is_array_leaf(w) else w for w, m in pairs])
        _, (model, atoms) = analysed(params, inputs)
        keep = TracedKeep({atom: kept[number] for atom, number in atoms.items() if kept[number] is not None})
        arrays = [mask is not True for w, mask in zip(leaves, of_leaves, strict=True) if is_array_leaf(w)]
        others = len(model.frame.jaxpr.invars) - len(model.traced.consts) - len(arrays)
        zeros = Zeros(model.frame, [*[False] * len(model.traced.consts), *arrays, *[False] * others], keep)
        return run(model, MaskedTraining(keep, zeros), params, inputs)

    return masked


def _mask_leaves(groups: Groups, params: PyTree, masks: PyTree) -> list[Any]:
    """The masks in the order of the parameters, True for statistics that the masks lack; checked."""
    leaves = leaves_of(params)
    shapes = {leaf.path: tuple(getattr(leaf.value, "shape", ())) for leaf in leaves}
    for path in dict.fromkeys(member.path for group in groups for member in group.members):
        check_member(groups, path, shapes.get(path))
    by_path = {leaf.path: leaf.value for leaf in leaves_of(masks)}
    missing = shapes.keys() - by_path.keys()
    if missing and by_path.keys() <= shapes.keys() and all(map(is_statistic, missing)):
        filled = [by_path.get(leaf.path, True) for leaf in leaves]
        found = mask_leaves(params, jax.tree.unflatten(jax.tree.structure(params), filled))
    else:
        found = mask_leaves(params, masks)
    if not any(isinstance(mask, jax.core.Tracer) for mask in found):
        plan_from_masks(groups, masks)  # checks that no unit is masked in part
    return [True if is_kept_whole(mask) else mask for mask in found]


def _kept_units(groups: Groups, params: PyTree, masks: Sequence[Any]) -> list[Any]:
    """For each group which of its units are kept; None for all."""
    given = {
        leaf.path: None if mask is True else jnp.asarray(mask)
        for leaf, mask in zip(leaves_of(params), masks, strict=True)
        if leaf.path in groups.model.axes and not (mask is True and is_statistic(leaf.path))
    }
    sparing = _smallest(groups, given)
    pruned = coupled_units(groups, range(len(groups)), sparing).pruned([given[path] for path in sparing])
    return [None if units is None else ~units for units in pruned]


def _smallest(groups: Groups, given: dict[str, Any]) -> list[str]:
    """Leaves whose masks tell the units of all groups, those with the smallest masks."""
    touched = {path: set() for path in given}
    for number, group in enumerate(groups):
        for member in group.members:
            if member.path in touched:
                touched[member.path].add(number)
    paths: list[str] = []
    missing = set(range(len(groups)))
    for path in sorted(given, key=lambda path: 0 if given[path] is None else given[path].size):
        if touched[path] & missing:
            paths.append(path)
            missing -= touched[path]
    return paths


def _atoms(groups: Groups, model: Model) -> dict[Atom, int]:
    """The atoms of another analysis of the function, and the numbers of the groups whose units they hold."""
    numbers = {group.atom: number for number, group in enumerate(groups)}
    atoms: dict[Atom, int] = {}
    for path, axes in groups.model.axes.items():
        of_model: Sequence[Any] = model.axes.get(path, ())
        for dim, axis in enumerate(axes):
            layout = layout_of(axis, numbers)
            if not any(True for _ in groups_in(layout)):
                continue
            pairs = matched(of_model[dim], layout) if dim < len(of_model) else None
            for atom, number in pairs or [(None, -1)]:
                if atom is None or atoms.setdefault(atom, number) != number:
                    raise ValueError(
                        f"the groups do not fit this function at {path!r}, axis {dim}: with these inputs its units "
                        "are others. Call jp.find_groups with this function and inputs like these."
                    )
    return atoms
