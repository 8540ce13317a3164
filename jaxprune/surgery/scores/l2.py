"""L2 norm of a unit over all its slices."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.params import PyTree, is_float_array
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.scores._unit_scores import UnitScores
from jaxprune.surgery.scores.entries import arrays_of, summed_over_units
from jaxprune.surgery.slicing import on_host


def l2_scores(groups: Groups, params: PyTree) -> UnitScores:
    r"""L2 norm of all entries of a unit's member slices: \( s_i = \sqrt{\sum_{w \in \text{unit } i} w^2} \).

    Args:
      groups: the groups that `find_groups` returned.
      params: the parameters that were analysed, as arrays.

    Returns:
      For each group a float64 array of shape (group.size,).

    Raises:
      ValueError: if `params` has other paths or shapes than the parameters that the groups were found with.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[3.0, 0.0]]), "down": jnp.array([[4.0], [1.0]])}
      >>> groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
      >>> jp.surgery.l2_scores(groups, params)["down[0]"]
      array([5., 1.])

    References:
      Li et al., Pruning Filters for Efficient ConvNets, 2016, arXiv:1608.08710 (there by L1 norm).
    """
    found = {path: _squares(x) for path, x in arrays_of(groups, params).items() if is_float_array(x)}
    squares = {path: square for path, (square, _) in found.items()}
    factors = {path: factor for path, (_, factor) in found.items()}
    totals = summed_over_units(groups, squares, factors)
    return UnitScores({name: np.sqrt(total) for name, total in totals.items()})


def _squares(leaf: Any) -> tuple[Any, float]:
    """Squares in float32 of the entries, scaled to at most 2, and the factor that restores their scale."""
    module: Any = np if on_host(leaf) else jnp
    w = module.asarray(leaf, np.float32)
    largest = float(module.max(module.abs(w))) if w.size else 0.0
    exponent = math.frexp(largest)[1] - 1 if 0 < largest < math.inf else 0
    half = exponent // 2  # 2^-exponent itself may be outside the range of float32
    near_one = w * np.float32(2.0**-half) * np.float32(2.0 ** (half - exponent))
    return module.square(near_one), 4.0**exponent
