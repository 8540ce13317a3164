"""Permutation: units of groups in another order, so that an N:M pattern loses less; the function stays the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxprune.params import PyTree
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.orders.fixed_order import fixed_orders
from jaxprune.surgery.orders.orders import Orders, orders_of


def permute(
    groups: Groups,
    params: PyTree,
    n: int = 2,
    m: int = 4,
    *,
    scores: PyTree | None = None,
    where: PyTree | None = None,
    exclude: str | Iterable[str] = (),
    only: str | Iterable[str] | None = None,
    rounds: int = 10,
    orders: Orders | None = None,
) -> PyTree:
    r"""Reorders the units of groups so that an N:M pattern keeps more of the scores. The function stays the same.

    All members of a group move alike: the outputs of the weights that make its units, biases, norms, statistics, and
    the inputs of the weights that sum over them. The pattern compares m neighbouring inputs of a weight, and it loses
    least where large and small ones stand together. With groups G of m neighbours the search maximizes

    $$\sum_G \sum_o \max_{K \subset G, |K| = n} \sum_{i \in K} s_{io}$$

    over all weights that sum over the units, one group of units after another. An order never keeps less than the
    order before it. Up to m = 4 the order is the best one for at most 2m units; otherwise it is a local optimum.

    Groups keep their order where the function depends on it: a constant differs between the units (a RoPE angle), a
    sum runs along them, a router chooses among them. A group of units that no pattern depends on, such as heads of a
    multiple of m numbers, keeps its order too. Units of parts of an axis in which m does not divide the start or
    the size move within whole groups of m only. One group has one order: the layers of a `scan`, the experts of a stack
    and the heads of a layer share it, so they gain less than layers with parameters of their own.

    Args:
      groups: the groups that `jp.find_groups` returned.
      params: the parameters that were analysed, as arrays; with `orders`, any tree like them.
      n, m: the pattern: n of every m weights are kept along the inputs, as the function multiplies by them.
      scores: tree like `params` of scores (larger = keep) whose kept sum is maximized, such as `jp.scores.wanda(params,
        stats, per_output=False)`; a leaf of NaN does not count. None for magnitude.
      where: tree of bools (or a prefix of one, or a function that returns it) that selects the weights that are to be
        pruned; None for `prunable(params)`. Other weights move with their units, but their scores don't count.
      exclude: names or path patterns, as in `jp.plan_removal`, of groups that keep their order.
      only: names or path patterns of the only groups that may be reordered.
      rounds: effort of the search.
      orders: orders that were found or made before, to apply them to another tree: masks, scores, averages. The
        arguments before it, apart from `groups` and `params`, then have no effect.

    Returns:
      The tree in the new order. `jp.surgery.find_orders` returns the orders themselves.

    Raises:
      ValueError: unless 0 < n < m; if `params` or `scores` are not trees of the parameters that were analysed; if a
        score is not finite (other than a whole leaf of NaN); if a pattern matches no group.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.arange(8.0)[None], "down": jnp.array([[9.0, 8, 7, 6, 1, 1, 1, 1]]).T}
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> x = jnp.ones((1, 1))
      >>> permuted = jp.permute(jp.find_groups(mlp, params, x), params)
      >>> permuted["down"].ravel()
      Array([9., 1., 1., 6., 8., 1., 1., 7.], dtype=float32)
      >>> bool(jnp.allclose(mlp(permuted, x), mlp(params, x)))
      True

    References:
      Pool, Yu, Channel Permutations for N:M Sparsity, 2021 (NeurIPS; one matrix at a time, exchanges of columns).
      Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models, 2024 (ICLR;
      assignment of columns by the Hungarian method).
      Zou et al., PermLLM: Learnable Channel Permutation for N:M Sparse Large Language Models, 2025,
      arXiv:2510.10136.
    """
    if orders is None:
        orders = find_orders(
            groups,
            params,
            n,
            m,
            scores=scores,
            where=where,
            exclude=exclude,
            only=only,
            rounds=rounds,
        )
    return orders.apply(params)


def find_orders(
    groups: Groups,
    params: PyTree,
    n: int = 2,
    m: int = 4,
    *,
    scores: PyTree | None = None,
    where: PyTree | None = None,
    exclude: str | Iterable[str] = (),
    only: str | Iterable[str] | None = None,
    rounds: int = 10,
) -> Orders:
    """The orders of units in which an N:M pattern keeps more of the scores, without applying them.

    Args:
      groups, params, n, m, scores, where, exclude, only, rounds: as in `jp.permute`.

    Returns:
      The orders. Printing them shows what share of the scores the pattern keeps before and after, and why other
      groups keep their order. `orders.apply(tree)` and `jp.permute(groups, tree, orders=orders)` reorder a tree,
      `orders.permute_opt_state(opt_state)` an optimizer state, and `orders.inverse()` undoes the orders.

    Raises:
      ValueError: as in `jp.permute`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.arange(8.0)[None], "down": jnp.array([[9.0, 8, 7, 6, 1, 1, 1, 1]]).T}
      >>> groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
      >>> orders = jp.surgery.find_orders(groups, params)
      >>> orders
      group     units   moved   kept before   after
      ...
      down[0]       8       4         55.9%   88.2%
      >>> orders.inverse().apply(orders.apply(params))["up"].tolist()
      [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    """
    return groups.find_orders(
        params, n, m, scores=scores, where=where, exclude=exclude, only=only, rounds=rounds
    )


def unit_orders(groups: Groups, units: Mapping[str, Any]) -> Orders:
    """Makes orders of given permutations.

    Args:
      groups: the groups that `jp.find_groups` returned.
      units: group name -> permutation of shape (group.size,): unit i becomes what unit `units[name][i]` was. Groups
        that are not named keep their order.

    Returns:
      The orders.

    Raises:
      KeyError: if no group has this name.
      ValueError: if an array is not a permutation of the units, or the function depends on their order.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[1.0, 2.0, 3.0]]), "down": jnp.ones((3, 1))}
      >>> groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
      >>> orders = jp.surgery.unit_orders(groups, {"down[0]": [2, 0, 1]})
      >>> jp.permute(groups, params, orders=orders)["up"]
      Array([[3., 1., 2.]], dtype=float32)
    """
    found = {groups[name].name: np.asarray(order) for name, order in units.items()}
    for name, order in found.items():
        size = groups[name].size
        if order.shape != (size,) or not np.array_equal(np.sort(order), np.arange(size)):
            raise ValueError(
                f"`units` must be a permutation of the {size} units, each number from 0 to {size - 1} once, got "
                f"{order!r} at {name!r}."
            )
    atoms = {group.name: group.atom for group in groups}
    fixed = fixed_orders(groups.model, {atoms[name] for name in found})
    for name in found:
        if atoms[name] in fixed:
            raise ValueError(
                f"`units` can't reorder {name!r}, because the function depends on the order of its units: "
                f"{fixed[atoms[name]]}. Leave it out."
            )
    return orders_of(found, atoms, groups.model.axes, {}, {})
