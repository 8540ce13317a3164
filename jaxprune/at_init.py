"""Pruning at initialization in many small steps: score, prune, score again, in one loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.allocation import Scope
from jaxprune.masking import Criterion, apply_masks
from jaxprune.masking.rounds import counts_of_rounds
from jaxprune.params import PyTree
from jaxprune.scores._scorer import call_score
from jaxprune.structures import Structure, Unstructured
from jaxprune.whole_numbers import check_whole


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
    r"""Prunes at initialization in rounds, each with new scores of the masked parameters.

    After round r of R the density is \(d^{r/R}\), where d is the final density. This is SynFlow with
    `rounds=100`, iterative SNIP, and one-shot pruning with `rounds=1`. Pruned weights remain pruned. The rounds
    are one `lax.scan`.

    Args:
      score: params -> scores, or (params, key) -> scores (as for `gradual`); larger = keep. It must run under `jit`.
      params: pytree of arrays: the network at initialization.
      sparsity: as for `make_masks`: a number, a scalar array (may be traced), or a tree of them.
      rounds: number of prunings.
      scope, structure, where, minimum: as for `make_masks`.
      key: for score functions that take a key.

    Returns:
      Tree like `params` of masks that prune exactly `round(sparsity * n)` units.

    Raises:
      ValueError: as `make_masks` does; if there is less than one round; if scores become NaN or -inf (when
        `params` are known numbers).

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
    check_whole(rounds=rounds)
    units = Criterion(structure, scope, where, minimum).units(params)
    shares = units.shares(sparsity)
    units.check_final(shares)
    counts = counts_of_rounds([units.counts(_share_after(shares, r, rounds)) for r in range(1, rounds + 1)])

    def prune(held: list[jax.Array], step: tuple[Any, jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        counts, number = step
        masks = units.tree(held)
        step_key = None if key is None else jax.random.fold_in(key, number)
        scores = call_score(score, apply_masks(params, masks), step_key)
        new, fine = units.masks_and_flags(scores, counts, masks)
        return units.at_chosen(new), jnp.all(jnp.stack(fine))

    start = units.at_chosen(units.full_masks())
    held, fine = jax.lax.scan(prune, start, (counts, jnp.arange(rounds)))
    if not isinstance(fine, Tracer) and not bool(fine.all()):
        raise ValueError(
            f"`score` must return numbers or inf, got NaN or -inf in round {int(jnp.argmin(fine)) + 1} of {rounds}."
        )
    return units.tree(held)


def _share_after(shares: Any, number: int, rounds: int) -> Any:
    """The sparsity after a round; after the last round exactly the final sparsity."""
    if isinstance(shares, list):
        return [_share_after(share, number, rounds) for share in shares]
    return shares if number == rounds else 1 - (1 - shares) ** (number / rounds)
