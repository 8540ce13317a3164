"""A loss in which every branch is multiplied by a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree
from jaxprune.surgery.layers.branches import Branches
from jaxprune.surgery.layers.bypass import checked_names, scaled
from jaxprune.surgery.layers.evaluation import run
from jaxprune.surgery.layers.finding import find_branches

Gated = Callable[[Any, Sequence[Any], Any], jax.Array]  # (gates, arrays of the parameters, batch) -> loss


def gated_loss(
    branches: Branches,
    names: Sequence[str],
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    caller: str,
) -> Gated:
    """The loss as a function of a number for each branch (1 = as it is, 0 = left out), the arrays and a batch.

    The branches are found anew in `loss_fn`, by their names, once for each shape of a batch.

    Raises:
      ValueError: when it is called, if `loss_fn` gives no single float or has not the branches; at once, if
        `params` is not what was analysed.
      TypeError: at once, if `params` is traced or abstract.
    """
    branches.check_arrays(params, caller)
    found: dict[Any, Branches] = {}

    def loss(gates: Any, arrays: Sequence[Any], batch: Any) -> jax.Array:
        leaves, treedef = jax.tree.flatten(batch)
        key = (treedef, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves if is_array_leaf(x)))
        if key not in found:
            here = find_branches(loss_fn, params, batch, plain=True)
            outs = here.graph.outs
            aval = here.graph.avals[outs[0]] if len(outs) == 1 and outs[0] >= 0 else None
            if aval is None or aval.shape != () or not here.graph.is_float(outs[0]):
                raise ValueError(
                    "`loss_fn` must return one floating-point number. Return the mean over the batch, without "
                    "auxiliary outputs."
                )
            checked_names(here, names, "loss_fn")
            found[key] = here
        here = found[key]
        mode = scaled(here, dict(zip(names, gates, strict=True)))
        return run(here.graph.traced, arrays, (batch,), mode)

    return loss


def arrays_of(params: PyTree) -> list[Any]:
    """The arrays of a tree: arguments of a compiled function, not constants in it."""
    return [x for x in jax.tree.leaves(params) if is_array_leaf(x)]


def listed(batches: Iterable[Any]) -> list[Any]:
    """The batches.

    Raises:
      ValueError: there is none.
    """
    found = list(batches)
    if not found:
        raise ValueError("`batches` is empty: pass at least one batch of `loss_fn`.")
    return found
