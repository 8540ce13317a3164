"""Block influence: how far a branch turns the stream that it is added to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree
from jaxprune.surgery.layers.branches import Branches
from jaxprune.surgery.layers.bypass import checked_names
from jaxprune.surgery.layers.evaluation import Watched, run
from jaxprune.surgery.layers.finding import find_branches


def block_influence(branches: Branches, params: PyTree, batches: Iterable[Any]) -> dict[str, float]:
    r"""One minus the cosine of the stream before and after: \( s = 1 - \operatorname{mean}_t \cos(x_t, y_t) \).

    x is the stream before the branch is added, y after it, and the cosine runs over the last axis: the features
    of each sample and position t. A block is measured from its first branch to its last one, a step of a scan
    from carry to carry (the first float one).

    Args:
      branches: what `find_branches` found, at whatever batch size.
      params: the parameters that were analysed, as arrays.
      batches: tuples of inputs `(x, ...)` of the analysed function; what is no tuple is its only input. Any
        iterable; each batch counts alike, and each new shape is compiled once.

    Returns:
      Branch name -> score, larger = keep.

    Raises:
      ValueError: there is no batch, `params` is not what was analysed, or at the shapes of a batch the function
        has not these branches.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"turn": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "grow": jnp.eye(2), "head": jnp.ones((2, 1))}
      >>> def fn(p, x):
      ...     x = x + x @ p["turn"]
      ...     return (x + x @ p["grow"]) @ p["head"]
      >>> x = jnp.array([[1.0, 0.0]])  # (1, 0) -> (1, 1) -> (2, 2)
      >>> scores = jp.surgery.block_influence(jp.find_branches(fn, params, x), params, [x])
      >>> {name: abs(round(score, 3)) for name, score in scores.items()}
      {'turn': 0.293, 'grow': 0.0}

    References:
      Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024,
      arXiv:2403.03853.
    """
    branches.check_arrays(params, "block_influence")
    names = branches.keys()
    arrays = [x for x in jax.tree.leaves(params) if is_array_leaf(x)]
    compiled: dict[Any, Any] = {}
    total, count = jnp.zeros(len(names), jnp.float32), 0
    for batch in batches:
        inputs = batch if isinstance(batch, tuple) else (batch,)
        leaves, treedef = jax.tree.flatten(inputs)
        key = (treedef, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves if is_array_leaf(x)))
        if key not in compiled:
            compiled[key] = jax.jit(_measured(find_branches(branches.fn, params, *inputs, plain=True), names))
        total, count = total + compiled[key](arrays, [x for x in leaves if is_array_leaf(x)]), count + 1
    if not count:
        raise ValueError("`batches` is empty: pass at least one batch of inputs.")
    return {name: float(score) for name, score in zip(names, total / count, strict=True)}


def _measured(branches: Branches, names: list[str]) -> Any:
    """Function (parameter arrays, inputs) -> the influence of each branch."""
    checked_names(branches, names)

    def measured(arrays: list[Any], inputs: list[Any]) -> jax.Array:
        drops = {at for name in names for at, _ in branches[name].drops}
        steps = {at for name in names for at, _ in branches[name].steps}
        swaps = {after: before for name in names for after, before in branches[name].swaps}
        watched = Watched(drops, steps, _influence, swaps)
        run(branches.graph.traced, arrays, inputs, watched)
        found = []
        for branch in (branches[name] for name in names):
            if branch.steps:
                ((at, step),) = branch.steps
                found.append(watched.scans[at][step])
                continue
            if branch.swaps:
                ((at, _),) = branch.swaps
                found.append(_influence(*watched.swapped[at]))
                continue
            (first, operand), (last, _) = branch.drops[0], branch.drops[-1 if branch.kind == "block" else 0]
            if first in watched.stacked:
                before, after = watched.stacked[first][0][1 - operand], watched.stacked[last][1]
                found.append(jax.vmap(_influence)(before, after).sum())
                continue
            operands, _ = watched.sums[first]
            found.append(_influence(operands[1 - operand], watched.sums[last][1]))
        return jnp.stack(found)

    return measured


def _influence(before: jax.Array, after: jax.Array) -> jax.Array:
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    if before.ndim == 0:
        before, after = before[None], after[None]
    norms = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
    cosine = (before * after).sum(-1) / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)
    return 1 - cosine.mean()
