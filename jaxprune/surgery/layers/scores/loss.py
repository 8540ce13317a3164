"""What the loss rises by when branches are left out, one at a time or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import numpy as np

from jaxprune.params import PyTree
from jaxprune.surgery.layers.branches import Branch, Branches
from jaxprune.surgery.layers.scores._gates import Gated, arrays_of, gated_loss, listed


def loss_increase(
    branches: Branches, loss_fn: Callable[[PyTree, Any], Any], params: PyTree, batches: Iterable[Any]
) -> dict[str, float]:
    r"""What the loss rises by without a branch: \( s = L(\text{without it}) - L \), the mean over batches.

    One compiled function serves all branches: each is multiplied by a number that is an argument.

    Args:
      branches: what `find_branches` found.
      loss_fn: (params, batch) -> scalar, a loss that calls the analysed function once.
      params: the parameters that were analysed, as arrays.
      batches: one batch or more, any iterable; each counts alike.

    Returns:
      Branch name -> score, larger = keep.

    Raises:
      ValueError: if there is no batch, the loss is not a scalar or does not contain the branches, or `params` are
        not those that were analysed.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"f": jnp.eye(2), "g": 3 * jnp.eye(2), "head": jnp.ones((2, 1))}
      >>> def fn(p, x):
      ...     x = x + x @ p["f"]
      ...     return (x + x @ p["g"]) @ p["head"]
      >>> x = jnp.ones((1, 2))
      >>> loss_fn = lambda p, x: -fn(p, x).mean()  # -2 * 2 * 4
      >>> jp.surgery.loss_increase(jp.find_branches(fn, params, x), loss_fn, params, [x])
      {'f': 8.0, 'g': 12.0}

    References:
      Song et al., SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks,
      2024, arXiv:2402.09025.
    """
    names, batches = branches.keys(), listed(batches)
    loss = _compiled(gated_loss(branches, names, loss_fn, params, "loss_increase"), params)
    whole = _mean(loss, np.ones(len(names), np.float32), batches)
    return {name: _mean(loss, _without(len(names), [i]), batches) - whole for i, name in enumerate(names)}


def greedy_loss_increase(
    branches: Branches,
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    number: int | None = None,
    level: Literal["parts", "blocks"] = "parts",
    budget: Literal["params", "flops", "branches"] = "branches",
    exclude: str | Branch | Iterable[str | Branch] = (),
) -> dict[str, float]:
    r"""The order in which branches are removed if each step removes the one that raises the loss least.

    With a budget of parameters or FLOPs, each step removes the branch with the lowest rise per entry or FLOP that
    is removed with it: \( (L(\text{without it}) - L) / c \). After each removal all others are evaluated anew, by
    the same compiled function: n branches cost about n * number / 2 evaluations or more.

    Args:
      branches, loss_fn, params, batches: as in `loss_increase`.
      number: how many branches to remove, one after the other; None for all but one.
      level: as in `plan_layers`: the branches that are ordered.
      budget: as in `plan_layers`: what the rise of the loss is divided by. With "branches", which all cost the
        same, it is the branch whose removal leaves the lowest loss.
      exclude: as in `plan_layers`: branches to keep.

    Returns:
      Branch name -> score, larger = keep: 0, 1, 2, ... in the order of removal, then the others by their rises at
      the last step, then what `exclude` keeps. Pass it to `plan_layers` with the same `level`, `budget` and
      `exclude`.

    Raises:
      ValueError: as in `loss_increase`, or if `number` is not in 1 to the number of branches less one, or a pattern
        matches no branch.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"f": jnp.eye(2), "g": 3 * jnp.eye(2), "h": 2 * jnp.eye(2), "head": jnp.ones((2, 1))}
      >>> def fn(p, x):
      ...     for name in "fgh":
      ...         x = x + x @ p[name]
      ...     return x @ p["head"]
      >>> x = jnp.ones((1, 2))
      >>> loss_fn = lambda p, x: -fn(p, x).mean()
      >>> jp.surgery.greedy_loss_increase(jp.find_branches(fn, params, x), loss_fn, params, [x])
      {'f': 0.0, 'g': 2.0, 'h': 1.0}

    References:
      Song et al., SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks,
      2024, arXiv:2402.09025.
    """
    if budget not in ("params", "flops", "branches"):
        raise ValueError(f"`budget` must be one of 'params', 'flops', 'branches', got {budget!r}.")
    names, batches = [branch.name for branch in branches.free(level, exclude)], listed(batches)
    last = len(names) - 1 if number is None else number
    if not isinstance(last, int) or not 0 < last < len(names):
        raise ValueError(
            f"`number` must be in 1 to {len(names) - 1} ({len(names)} branches), got {number!r}."
        )
    loss = _compiled(gated_loss(branches, names, loss_fn, params, "greedy_loss_increase"), params)
    gone: list[int] = []
    left, rises = list(range(len(names))), np.zeros(len(names))
    now = _mean(loss, _without(len(names), []), batches)
    for _ in range(last):
        losses = np.array([_mean(loss, _without(len(names), [*gone, i]), batches) for i in left])
        costs = np.array([_cost(branches, [names[j] for j in gone], names[i], budget) for i in left])
        rises = np.nan_to_num(losses - now, nan=np.inf, posinf=np.inf, neginf=-np.inf) / costs
        chosen = int(np.argmin(rises))
        gone.append(left.pop(chosen))
        now, rises = losses[chosen], np.delete(rises, chosen)
    order = [*gone, *(left[i] for i in np.argsort(rises, kind="stable"))]
    scores = {names[i]: float(place) for place, i in enumerate(order)}
    return {branch.name: scores.get(branch.name, float(len(names))) for branch in branches.at(level)}


def _cost(branches: Branches, gone: list[str], name: str, budget: str) -> float:
    """What is removed with one more branch; at least a part of one entry, since shared weights can stay."""
    if budget == "branches":
        return 1.0
    before, after = branches.removed(gone), branches.removed([*gone, name])
    more = after.size - before.size if budget == "params" else after.flops - before.flops
    return max(float(more), 1e-30)


def _compiled(loss: Gated, params: PyTree) -> Callable[[Any, Any], Any]:
    compiled, arrays = jax.jit(loss), arrays_of(params)
    return lambda gates, batch: compiled(gates, arrays, batch)


def _without(count: int, gone: list[int]) -> np.ndarray:
    gates = np.ones(count, np.float32)
    gates[gone] = 0
    return gates


def _mean(loss: Callable[[Any, Any], Any], gates: np.ndarray, batches: list[Any]) -> float:
    return float(np.mean([np.float64(loss(gates, batch)) for batch in batches]))
