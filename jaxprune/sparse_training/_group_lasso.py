"""Group lasso: a penalty on the norms of units, by proximal steps that reach exact zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.lookahead import refuse_pair
from jaxprune.masking import Criterion, Units
from jaxprune.meshes import placed_like
from jaxprune.params import PyTree, flatten_with_paths, prunable_leaves
from jaxprune.scores._unit_norm import l2_of_units
from jaxprune.selection.counts import as_count
from jaxprune.structures import Channels, LeafStructure, Structure
from jaxprune.structures.by_leaf import is_by_leaf
from jaxprune.transforms._masked import check_given
from jaxprune.transforms._placeholder import mappable


class GroupLassoState(NamedTuple):
    """count: steps so far; masks: False for the units that the last step set to zero; inner_state."""

    count: jax.Array
    masks: PyTree
    inner_state: Any


def group_penalty(
    params: PyTree,
    structure: LeafStructure | Structure = Channels(),
    where: PyTree | None = None,
) -> jax.Array:
    """Sum over units of the root of their size times their L2 norm: `sum_g sqrt(n_g) ||w_g||`.

    With `structure=jp.Coupled(groups)` the norm of a unit is that of its slices of all members.

    Add it to a loss, or report it beside the loss; `group_lasso` needs neither. Its gradient at a unit of zeros
    is 0.

    Args:
      params: pytree of arrays.
      structure: how weights form units.
      where: the leaves to penalise: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.

    Returns:
      float32 scalar.

    Raises:
      ValueError: if the structure can't cut a leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.sparse_training.group_penalty({"w": jnp.array([[3.0, 0.0], [4.0, 0.0]])})  # sqrt(2) * 5
      Array(7.071068, dtype=float32)

    References:
      Yuan, Lin, Model selection and estimation in regression with grouped variables, 2006.
      Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016, arXiv:1608.03665.
    """
    if not is_by_leaf(structure):
        units = Criterion(structure, where=where).units(params)
        norms, sizes = _of_coupled(units, units.at_chosen(params))
        roots = (jnp.sqrt(jnp.float32(size)) * jnp.sum(norm) for norm, size in zip(norms, sizes, strict=True))
        return sum(roots, jnp.zeros([], jnp.float32))
    of_leaf: Any = structure
    paths, leaves, _ = flatten_with_paths(params)
    total = jnp.zeros([], jnp.float32)
    for i in prunable_leaves(params, where):
        of_leaf.check(paths[i], leaves[i].shape)
        norm, size = _norm_and_size(leaves[i], of_leaf)
        total += jnp.sum(jnp.sqrt(size) * norm)
    return total


def group_lasso(
    inner: optax.GradientTransformation,
    strength: float,
    *,
    learning_rate: float | Callable[[Any], Any],
    structure: LeafStructure | Structure = Channels(),
    where: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that a proximal step of `strength * group_penalty` follows each step.

    `w_g <- max(0, 1 - t sqrt(n_g) / ||w_g||) w_g` with `t = learning_rate * strength`; w are the new weights of
    the inner optimizer. Units of small norm become exactly zero, with momentum too; a penalty in the loss never
    achieves that. With `Unstructured()` it is soft thresholding; on norm scales, that of network slimming. The
    masks in the state follow the weights: a unit whose gradient lifts it above t is kept again.

    With `structure=jp.Coupled(groups)` the norm of a unit is that of its slices of all members. A weight that lies in
    units of two groups is shrunk by both, one after the other; each group keeps the units with the largest norms
    that its `minimum` and `round_to` ask for, however small they are.

    Args:
      inner: any optax optimizer.
      strength: lambda, at least 0.
      learning_rate: step size of the proximal step: a number or a schedule, step -> number. Use that of `inner`.
      structure: how weights form units.
      where: the leaves to penalise: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.

    Returns:
      A transformation whose state is a `GroupLassoState`.

    Raises:
      ValueError: if the strength is negative; at `init`, if the structure can't cut a leaf; if `params` is not
        passed to `update`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[3.0, 0.3], [4.0, 0.4]])}
      >>> tx = jp.sparse_training.group_lasso(optax.sgd(1.0), 2**-0.5, learning_rate=1.0)
      >>> updates, state = tx.update({"w": jnp.zeros((2, 2))}, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["w"], jp.get_masks(state)["w"])
      [[2.4 0. ]
       [3.2 0. ]] [[ True False]]

    References:
      Yuan, Lin, Model selection and estimation in regression with grouped variables, 2006.
      Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016, arXiv:1608.03665.
    """
    inner = optax.with_extra_args_support(inner)
    if not strength >= 0:
        raise ValueError(f"`strength` must be at least 0, got {strength}.")

    criterion = Criterion(structure, where=where)
    of_leaf: Any = structure

    def init_fn(params: PyTree) -> GroupLassoState:
        refuse_pair(params, "group_lasso")
        units = criterion.units(params)
        if not is_by_leaf(structure):
            _of_coupled(units, units.at_chosen(params))
        masks = units.full_masks()
        return GroupLassoState(jnp.zeros([], jnp.int32), masks, inner.init(params))

    def update_fn(updates: PyTree, state: GroupLassoState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        steps, treedef = jax.tree.flatten(updates)
        weights, masks = jax.tree.leaves(params), jax.tree.leaves(state.masks)
        if not is_by_leaf(structure):
            _coupled_step(criterion.units(params), weights, steps, masks, rate * strength)
        for i in prunable_leaves(params, where) if is_by_leaf(structure) else ():
            w = weights[i].astype(jnp.promote_types(weights[i].dtype, jnp.float32))
            moved = w + steps[i].astype(w.dtype)
            norm, size = _norm_and_size(moved, of_leaf)
            threshold = rate * strength * jnp.sqrt(size)
            gone = (norm <= threshold) & (threshold > 0)  # NaN is not pruned: that would hide it
            shrink = 1 - threshold / jnp.where(norm > 0, norm, 1)
            masks[i] = placed_like(of_leaf.expand(~gone, w.shape), weights[i])
            # -w is exact in any dtype: w + (-w) is zero.
            steps[i] = jnp.where(masks[i], moved * of_leaf.expand(shrink, w.shape) - w, -w)
        masks = jax.tree.unflatten(jax.tree.structure(state.masks), masks)
        count = optax.safe_increment(state.count)
        return jax.tree.unflatten(treedef, steps), GroupLassoState(count, masks, inner_state)

    return optax.GradientTransformationExtraArgs(mappable(init_fn, GroupLassoState, inner), update_fn)


def _coupled_step(units: Units, weights: list[Any], steps: list[Any], masks: list[Any], rate: Any) -> None:
    """The proximal step of units that lie across leaves; writes the steps and masks of their leaves."""
    wide = [weights[i].astype(jnp.promote_types(weights[i].dtype, jnp.float32)) for i in units.chosen]
    moved = [w + steps[i].astype(w.dtype) for i, w in zip(units.chosen, wide, strict=True)]
    cut: Any = units.cut
    norms, sizes = _of_coupled(units, moved)
    thresholds = [rate * jnp.sqrt(jnp.float32(size)) for size in sizes]
    pairs = list(zip(norms, thresholds, strict=True))
    gone = [jnp.sum((norm <= threshold) & (threshold > 0), dtype=jnp.int32) for norm, threshold in pairs]
    ranked = [jnp.where(jnp.isnan(norm), jnp.inf, norm) for norm in norms]  # NaN is not pruned
    least = units.least or [0] * len(norms)
    unprotected = [jnp.int32(n - m) for n, m in zip(units.numbers, least, strict=True)]
    kept = cut.select(ranked, gone, [None] * len(norms), [as_count(n) for n in unprotected])
    # A unit that is kept although it is small is not shrunk.
    factors = [
        jnp.where(
            norm > threshold,
            1 - threshold / jnp.where(norm > 0, norm, 1),
            jnp.where(norm <= threshold, 1, norm),
        )
        for norm, threshold in pairs
    ]
    spread = zip(units.chosen, wide, moved, cut.masks(kept), cut.spread(factors), strict=True)
    for i, w, new, mask, factor in spread:
        masks[i] = placed_like(mask, weights[i])
        steps[i] = jnp.where(masks[i], new * factor - w, -w)


def _of_coupled(units: Units, leaves: list[Any]) -> tuple[list[jax.Array], Sequence[int]]:
    """The L2 norm of each unit by group, and for each group the number of weights in a unit.

    Raises:
      TypeError: if the structure does not tell the norms of its units.
    """
    cut: Any = units.cut
    if not callable(getattr(cut, "norms", None)):
        raise TypeError(
            "`structure` must have its units within one leaf each, such as Channels(), or be Coupled(groups), got "
            f"{units.criterion.structure!r}."
        )
    return cut.norms(leaves), cut.unit_sizes([tuple(leaf.shape) for leaf in leaves])


def _norm_and_size(w: jax.Array, structure: LeafStructure) -> tuple[jax.Array, jax.Array]:
    """The L2 norm of each unit and the number of its weights."""
    return l2_of_units(w, structure), jnp.asarray(structure.unit_sizes(w.shape), jnp.float32)
