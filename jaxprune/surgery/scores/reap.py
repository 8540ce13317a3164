"""Router-weighted expert activation: how much an expert adds for the tokens that are routed to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree
from jaxprune.surgery.evaluation.routed import Routed, Totals, Value, ended
from jaxprune.surgery.groups import Group, Groups
from jaxprune.surgery.inference.routers import router_inputs
from jaxprune.surgery.scores._unit_scores import UnitScores
from jaxprune.surgery.scores.activation import groups_at
from jaxprune.surgery.scores.entries import arrays_of


def reap_scores(
    groups: Groups,
    params: PyTree,
    batches: Iterable[Any],
    statistic: Literal["reap", "frequency"] = "reap",
) -> UnitScores:
    r"""Mean norm of what an expert adds: \( s_j = \operatorname{mean}_{x \in X_j} g_j(x) \|f_j(x)\|_2 \).

    X_j are the tokens that are routed to expert j, f_j(x) is its output and g_j(x) the router's weight that
    multiplies it. An expert that no token is routed to has the score 0. Where layers share a group (a scan over
    stacked layers), the mean is over the tokens of all these layers.

    The groups are those that an argmax or `top_k` chooses from. The router's weight is the factor of an expert's
    output that is computed from the values which are chosen from; it must multiply the output, not the expert's
    input. The output may be weighted before or after the last product with the expert's weights, token by token,
    sorted by experts (`lax.ragged_dot`), gathered in buffers, or for all experts at once. A token that is
    weighted by 0 counts as not routed.

    Args:
      groups: the groups that `find_groups` returned, at any batch size.
      params: the parameters that were analysed, as arrays.
      batches: tuples of inputs `(x, ...)` of the analysed function; a batch that is not a tuple is its only input.
        Shapes may differ from batch to batch.
      statistic: "reap", or "frequency" for the share of the routed tokens that each expert gets.

    Returns:
      A float64 array of shape (group.size,) for each group of experts. `plan_removal` requires that the other groups
      are excluded: `exclude=[group.name for group in groups if group not in scores]`.

    Raises:
      ValueError: if there is no group of experts, if there is no batch, if no expert's output is multiplied by a
        router's weight, or if the function does not have these groups at the shapes of a batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"router": jnp.array([[1.0, 0.0, 0.5]]), "experts": jnp.array([[[2.0]], [[5.0]], [[3.0]]])}
      >>> def fn(p, x):
      ...     gates = jax.nn.softmax(x @ p["router"])
      ...     weight, expert = jax.lax.top_k(gates, 1)
      ...     return weight * jnp.einsum("ti,tio->to", x, p["experts"][expert[:, 0]])
      >>> x = jnp.array([[2.0], [-1.0]])  # to expert 0 with weight 0.67, to expert 1 with weight 0.51
      >>> groups = jp.find_groups(fn, params, x)
      >>> jp.surgery.reap_scores(groups, params, [x])["experts[0]"].round(2)
      array([2.66, 2.53, 0.  ])

    References:
      Lasby et al., REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression, 2025, arXiv:2510.13999.
    """
    if statistic not in ("reap", "frequency"):
        raise ValueError(f"`statistic` must be 'reap' or 'frequency', got {statistic!r}.")
    arrays_of(groups, params)  # checks them
    experts = [group for group in groups if group.chosen]
    if not experts:
        raise ValueError(
            "`groups` has no group of experts: no argmax or top_k chooses among the units of a group. Printing "
            "`groups` shows what freezes the axes."
        )
    weights = [x for x in jax.tree.leaves(params) if is_array_leaf(x)]
    runs: dict[Any, Callable[..., Totals]] = {}
    sums = {group.name: np.zeros((2, group.size)) for group in experts}
    for batch in batches:
        inputs = [jnp.asarray(x) for x in jax.tree.leaves(batch) if is_array_leaf(x)]
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        if shapes not in runs:
            runs[shapes] = _totals(groups_at(groups, params, batch, shapes), experts, len(weights))
        for name, both in runs[shapes](weights, inputs).items():
            sums[name] += np.stack([np.asarray(x, np.float64) for x in both])
    if not runs:
        raise ValueError("`batches` is empty: pass at least one batch of inputs.")
    for name, (_, counts) in sums.items():
        if not counts.any():
            raise ValueError(
                f"no output of the experts of group {name!r} is multiplied by a weight that its router computes, or "
                "all these weights are 0. Score it in another way, such as jp.surgery.l2_scores."
            )
    if statistic == "frequency":
        return UnitScores({name: counts / counts.sum() for name, (_, counts) in sums.items()})
    return UnitScores({name: total / np.maximum(counts, 1) for name, (total, counts) in sums.items()})


def _totals(groups: Groups, experts: list[Group], n_weights: int) -> Callable[..., Totals]:
    """Makes a function of (weights, inputs) that returns the sum of norms and the number of tokens of each expert."""
    model = groups.model
    atoms = {group.name: groups[group.name].atom for group in experts}
    routers = {name: router_inputs(model, atom) for name, atom in atoms.items()}
    first, last = len(model.traced.consts), len(model.traced.consts) + n_weights
    paths = {path: first + i for i, path in enumerate(model.traced.paths)}
    members = {group.name: {paths[m.path] for m in groups[group.name].members} for group in experts}
    zeros = {g.name: (jnp.zeros(g.size, jnp.float32), jnp.zeros(g.size, jnp.float32)) for g in experts}

    def value(number: int, array: Any) -> Value:
        gates = frozenset(name for name in atoms if number in routers[name])
        weights = frozenset(name for name in atoms if number in members[name] - set(routers[name]))
        return Value(array, number >= last, gates, weights)

    @jax.jit
    def run(weights, inputs):
        args = [*model.traced.consts, *weights, *inputs]
        outs, totals = Routed(atoms).call(model.frame, [value(i, x) for i, x in enumerate(args)], zeros)
        return ended(outs, totals)

    return run
