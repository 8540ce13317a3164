"""Pruning at initialization in many small steps: scored, pruned, scored again, as one loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.allocation import (
    Scope,
    check_least_kept,
    check_scope,
    counts_to_prune,
    least_kept,
    shares_of,
)
from jaxprune.masks import apply_masks, check_patterns
from jaxprune.params import PyTree, flatten_with_paths, prunable_leaves
from jaxprune.scores.scorer import call_score
from jaxprune.selection.counts import as_count, stack
from jaxprune.structures import Structure, Unstructured
from jaxprune.units import full_masks, masks_from_counts, unit_counts


def prune_at_init(
    score: Callable[..., PyTree],
    params: PyTree,
    sparsity: Any,
    rounds: int = 100,
    *,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    minimum: int | float = 0,
    key: jax.Array | None = None,
) -> PyTree:
    r"""Masks from scores that are computed anew, on the masked parameters, after each of many prunings.

    After round r of R the density is \(d^{r/R}\), d that of the end: SynFlow with `rounds=100`, iterative
    SNIP, and with `rounds=1` pruning in one shot. What is pruned stays pruned. The rounds are one `lax.scan`.

    Args:
      score: params -> scores, or (params, key) -> scores (as for `gradual`); larger = keep. It must run under `jit`.
      params: pytree of arrays: the network at initialization.
      sparsity: as for `make_masks`: a number, a scalar array (also traced), or a tree of them.
      rounds: prunings.
      scope, structure, where, minimum: as for `make_masks`.
      key: for scores that take a key.

    Returns:
      Tree like `params` of masks, with exactly `round(sparsity * n)` units pruned.

    Raises:
      ValueError: as `make_masks` does; rounds below 1; scores that become NaN or -inf (where `params` are
        known numbers).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(8, 64), (64, 4)])]
      >>> mlp = lambda params, x: jax.nn.relu(x @ params[0]) @ params[1]
      >>> masks = jp.prune_at_init(lambda p: jp.scores.synflow(mlp, p, jnp.ones((1, 8))), params, 0.95)
      >>> round(jp.sparsity(params, masks) * 768)
      730

    References:
      Tanaka, Kunin, Yamins, Ganguli, Pruning neural networks without any data by iteratively conserving
      synaptic flow, 2020, arXiv:2006.05467.
      de Jorge et al., Progressive Skeletonization: Trimming more fat from a network at initialization, 2020,
      arXiv:2006.09081, for iterative SNIP.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"`rounds` must be a whole number of at least 1, got {rounds!r}.")
    check_scope(scope, structure)
    paths, leaves, treedef = flatten_with_paths(params)
    chosen = prunable_leaves(params, where)
    shares = shares_of(sparsity, params, chosen)
    check_patterns(structure, shares, [paths[i] for i in chosen])
    start = jax.tree.leaves(full_masks(params, structure, chosen))
    units = unit_counts(structure, leaves, chosen)
    least = least_kept(minimum, units)
    steps = [counts_to_prune(_share_after(shares, r, rounds), units, scope) for r in range(1, rounds + 1)]
    check_least_kept(steps[-1], units, least, [paths[i] for i in chosen])

    def tree_of(held: list[jax.Array]) -> PyTree:
        masks: list[Any] = [True] * len(leaves)
        for i, mask in zip(chosen, held, strict=True):
            masks[i] = mask
        return jax.tree.unflatten(treedef, masks)

    def prune(held: list[jax.Array], step: tuple[Any, jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        counts, number = step
        masks = tree_of(held)
        step_key = None if key is None else jax.random.fold_in(key, number)
        scores = call_score(score, apply_masks(params, masks), step_key)
        new = jax.tree.leaves(masks_from_counts(scores, counts, structure, chosen, masks, least))
        found = jax.tree.leaves(scores)
        is_fine = jnp.all(jnp.stack([jnp.all(found[i] > -jnp.inf) for i in chosen]))  # NaN is not
        return [new[i] for i in chosen], is_fine

    held, fine = jax.lax.scan(prune, [start[i] for i in chosen], (_columns(steps), jnp.arange(rounds)))
    if not isinstance(fine, Tracer) and not bool(fine.all()):
        raise ValueError(f"`score` gave NaN or -inf in round {int(jnp.argmin(fine)) + 1} of {rounds}.")
    return tree_of(held)


def _share_after(shares: Any, number: int, rounds: int) -> Any:
    """The sparsity after a round; after the last one that of the end, to the last bit."""
    if isinstance(shares, list):
        return [_share_after(share, number, rounds) for share in shares]
    return shares if number == rounds else 1 - (1 - shares) ** (number / rounds)


def _columns(steps: list[Any]) -> Any:
    """The counts of all rounds as arrays with a row a round, for each leaf or for all together."""
    if isinstance(steps[0], list):
        return [_columns(list(column)) for column in zip(*steps, strict=True)]
    return stack([as_count(count) for count in steps])
