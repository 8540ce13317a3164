"""Sanity checks of masks: which part of a ticket matters, its weights, their signs, their places, their number?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.masking import Criterion, apply_masks, shuffle_masks
from jaxprune.masking.units import Units, as_arrays
from jaxprune.params import PyTree, is_float_array, mask_leaves
from jaxprune.rewind import drawn_like
from jaxprune.scores import magnitude, random
from jaxprune.structures import Structure, Unstructured


def ticket_variants(
    params: PyTree,
    masks: PyTree,
    *,
    key: jax.Array,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    score: Callable[[PyTree], PyTree] | None = None,
    init_fn: Callable[[jax.Array], PyTree] | None = None,
    others: Mapping[str, PyTree] | None = None,
) -> dict[str, tuple[PyTree, PyTree]]:
    r"""Control experiments for a ticket: the same number of kept weights, but other weights, values or places.

    - "ticket": the parameters under the masks;
    - "shuffled": the masks shuffled within each layer;
    - "random": the same number of units at random places, whatever their layer;
    - "inverted": in each layer as many units, those with the lowest scores;
    - "signs": the kept weights have their sign and the standard deviation of their layer \( \sigma \) as value:
      \( \sigma \operatorname{sign}(w) \);
    - "reinitialized": new values under the same masks, if there is an `init_fn`;
    - those of `others`, under the names given there: the mask of another seed, or that of another task.

    Args:
      params: the parameters from which the ticket trains.
      masks: of the ticket.
      key: a `jax.random.key`.
      structure, where: with which the masks were made.
      score: params -> scores, for "inverted"; None for the magnitude of `params`. Pass the scores that made the masks
        (`lambda params: scores`) to invert these.
      init_fn: key -> parameters.
      others: name -> masks of these parameters.

    Returns:
      Name -> (parameters with pruned weights at zero, masks as bool arrays), all trees alike.

    Raises:
      ValueError: trees that don't match; masks that prune what `where` leaves out; a name of `others` that is one
        of the above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> masks = jp.make_masks(jp.scores.magnitude(params), 0.5)
      >>> made = jp.ticket_variants(params, masks, key=jax.random.key(0))
      >>> made["inverted"][1]["w"]
      Array([[False,  True],
             [ True, False]], dtype=bool)
      >>> made["signs"][0]["w"].round(2)
      Array([[1.52, 0.  ],
             [0.  , 1.52]], dtype=float32)

    References:
      Frankle et al., Pruning Neural Networks at Initialization: Why are We Missing the Mark?, 2020, arXiv:2009.08576.
      Su et al., Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot, 2020, arXiv:2009.11094.
      Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask, 2019, arXiv:1905.01067.
    """
    kept = as_arrays(mask_leaves(params, masks), params)
    units = Criterion(structure, where=where).units(params)
    _check_others(units, kept)
    shuffle_key, random_key, init_key = jax.random.split(key, 3)
    pruned = [jnp.sum(gone, dtype=jnp.int32) for gone in units.pruned(kept)]
    own = magnitude if score is None else score
    made = {
        "ticket": (params, kept),
        "shuffled": (params, shuffle_masks(_full(params, kept, jnp.ndim), structure, key=shuffle_key)),
        "random": (params, _random(units, params, pruned, random_key)),
        "inverted": (params, _inverted(units, own(params), pruned)),
        "signs": (_signs(params), kept),
    }
    if init_fn is not None:
        made["reinitialized"] = drawn_like(params, init_fn(init_key)), kept
    for name, other in (others or {}).items():
        if name in made:
            raise ValueError(f"`others` must have new names, got {name!r}, which is a variant of its own.")
        made[name] = params, mask_leaves(params, other, f"others[{name!r}]")
    alike = {name: (values, as_arrays(held, params)) for name, (values, held) in made.items()}
    return {name: (apply_masks(values, held), _full(params, held)) for name, (values, held) in alike.items()}


def sanity_checks(
    train: Callable[[PyTree, PyTree], Any], params: PyTree, masks: PyTree, *, key: jax.Array, **choices: Any
) -> dict[str, Any]:
    """Trains a ticket and its control experiments, one after the other in one program.

    Args:
      train: (params, masks) -> results: a whole training from these parameters under these masks, pure. The masks are
        arrays of the shapes of the parameters.
      params, masks, key: as for `ticket_variants`, and so are all further arguments.

    Returns:
      Name of the variant -> what `train` returns.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> masks = jp.make_masks(jp.scores.magnitude(params), 0.5)
      >>> found = jp.sanity_checks(lambda p, m: jnp.abs(p["w"]).sum(), params, masks, key=jax.random.key(0))
      >>> float(found["ticket"]), float(found["inverted"])
      (5.0, 1.5)
    """
    made = ticket_variants(params, masks, key=key, **choices)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made.values())
    results = jax.jit(lambda stacked: jax.lax.map(lambda variant: train(*variant), stacked))(stacked)
    return {name: jax.tree.map(lambda x, i=i: x[i], results) for i, name in enumerate(made)}


def _random(units: Units, params: PyTree, pruned: list[jax.Array], key: jax.Array) -> PyTree:
    """As many units at random places, ranked across all layers."""
    total = sum(pruned, jnp.zeros([], jnp.int32))
    return units.masks(random(params, key), total)


def _inverted(units: Units, scores: PyTree, pruned: list[jax.Array]) -> PyTree:
    """In each array of units as many are pruned, but those with the highest scores."""
    turned = jax.tree.map(lambda s: -s if is_float_array(s) else s, scores)
    return units.masks(turned, list(pruned))


def _signs(params: PyTree) -> PyTree:
    def one(w: Any) -> Any:
        if not is_float_array(w) or jnp.ndim(w) < 2:
            return w
        return (jnp.sign(w) * jnp.std(w.astype(jnp.float32))).astype(w.dtype)

    return jax.tree.map(one, params)


def _check_others(units: Units, masks: PyTree) -> None:
    """Raises ValueError for known masks that prune a leaf that is not among those to prune."""
    for i, (leaf, mask) in enumerate(zip(units.leaves, jax.tree.leaves(masks), strict=True)):
        if i not in units.chosen and not isinstance(mask, Tracer) and not bool(jnp.all(mask)):
            raise ValueError(
                f"`masks` prunes {leaf.path!r}, which `where` leaves out: pass the `where` with which they were made."
            )


def _full(params: PyTree, masks: PyTree, of: Callable[[Any], Any] = lambda mask: True) -> PyTree:
    """Those masks for which `of` holds in the shapes of the parameters."""
    return jax.tree.map(lambda w, m: jnp.broadcast_to(m, jnp.shape(w)) if of(m) else m, params, masks)
