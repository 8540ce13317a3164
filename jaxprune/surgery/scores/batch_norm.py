"""Scales of batch normalization as scores: network slimming."""

from __future__ import annotations

import re

import jax.numpy as jnp

from jaxprune.params import PyTree, is_float_array
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.scores._unit_scores import UnitScores
from jaxprune.surgery.scores.entries import arrays_of, places_of, summed_over_units

_SCALES = r"(.*[/_])?(scale|gamma)"


def batch_norm_scores(groups: Groups, params: PyTree, scales: str = _SCALES) -> UnitScores:
    r"""Sum of the absolute scales of a unit's normalization layers: \( s_i = \sum |\gamma_i| \).

    Args:
      groups: the groups that `find_groups` returned.
      params: the parameters that were analysed, as arrays.
      scales: regular expression that matches the whole paths of the scales. By default it matches paths that end in
        `scale` or `gamma`, the names in Flax and Haiku. In Equinox they are named `weight`: `".*norm.*/weight"`.

    Returns:
      A float64 array of shape (group.size,) for each group that has a scale. `plan_removal` requires that the
      other groups are excluded.

    Raises:
      ValueError: if `scales` is not a regular expression, if no group has a scale that it matches, or if `params`
        has other paths or shapes than the parameters that the groups were found with.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.ones((1, 2)), "bn": {"scale": jnp.array([0.5, -2.0])}, "down": jnp.ones((2, 1))}
      >>> fn = lambda p, x: jnp.tanh(x @ p["up"] * p["bn"]["scale"]) @ p["down"]
      >>> groups = jp.find_groups(fn, params, jnp.ones((1, 1)))
      >>> jp.surgery.batch_norm_scores(groups, params)["bn/scale[0]"]
      array([0.5, 2. ])

    References:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017, arXiv:1708.06519.
    """
    try:
        pattern = re.compile(scales)
    except re.error as error:
        raise ValueError(f"`scales` {scales!r} is not a regular expression ({error}).") from None
    absolute = {
        path: jnp.abs(jnp.asarray(x, jnp.float32))
        for path, x in arrays_of(groups, params).items()
        if pattern.fullmatch(path) and is_float_array(x)
    }
    sums = summed_over_units(groups, absolute)
    scored = {
        group.name: sums[group.name]
        for group in groups
        if any(path in absolute for path, _ in places_of(group))
    }
    if not scored:
        raise ValueError(
            f"`scales` {scales!r} matches no parameter that has units of a group. There are: "
            f"{', '.join(repr(path) for path in groups.model.traced.paths[:20])}."
        )
    return UnitScores(scored)
