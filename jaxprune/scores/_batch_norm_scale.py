"""Scales of batch norms (network slimming)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, flatten_with_paths, is_float_array
from jaxprune.scores._fpgm import check_channels
from jaxprune.structures import Channels


def batch_norm_scale(params: PyTree, norms: Mapping[str, str], structure: Channels = Channels()) -> PyTree:
    r"""Absolute scale of the batch norm after each channel: \(|\gamma_c|\).

    Slimming trains with an L1 penalty on the scales and then removes the channels with small scales.

    Args:
      params: pytree of arrays.
      norms: path of a weight -> path of the scale of the norm applied to its output. A pair may also be a
        regular expression and its replacement: `{r"(.*)Conv_(\d+)/kernel": r"\1BatchNorm_\2/scale"}`.
      structure: `Channels(axis)`: the axis of the weight along which the scale runs.

    Returns:
      Tree like `params` of float32 scores: |scale| along the channel axis of each weight named in `norms`, and
      at the scales themselves. All other leaves are NaN because they have no score. `make_masks` refuses NaN,
      so pass it a `where` that holds the weights named here and no others.

    Raises:
      ValueError: if a pattern matches no leaf, or a scale does not exist or does not fit the axis.
      TypeError: if the structure is not `Channels`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"Conv_0": {"kernel": jnp.ones((2, 3))}, "BatchNorm_0": {"scale": jnp.array([0.5, -2.0, 0.1])}}
      >>> jp.scores.batch_norm_scale(params, {"Conv_0/kernel": "BatchNorm_0/scale"})["Conv_0"]["kernel"]
      Array([[0.5, 2. , 0.1],
             [0.5, 2. , 0.1]], dtype=float32)

    References:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017, arXiv:1708.06519.
    """
    check_channels(structure)
    paths, leaves, treedef = flatten_with_paths(params)
    places = {path: i for i, path in enumerate(paths)}
    scores = [jnp.full(w.shape, jnp.nan, jnp.float32) if is_float_array(w) else w for w in leaves]
    for pattern, scale in norms.items():
        found = [(i, m) for i, path in enumerate(paths) if (m := re.fullmatch(pattern, path))]
        if not found:
            raise ValueError(f"`norms` pattern {pattern!r} matched no parameter. There are: {_shown(paths)}.")
        for i, match in found:
            name = match.expand(scale)
            if name not in places:
                raise ValueError(
                    f"`norms` maps {paths[i]!r} to {name!r}, which is not a parameter. There are: {_shown(paths)}."
                )
            gamma = jnp.abs(jnp.asarray(leaves[places[name]]).astype(jnp.float32))
            w = leaves[i]
            fits = -w.ndim <= structure.axis < w.ndim and gamma.shape == (w.shape[structure.axis],)
            if not fits:
                raise ValueError(
                    f"`norms` pairs {paths[i]!r} of shape {w.shape} with {name!r} of shape {gamma.shape}: the scale "
                    f"must be as long as axis {structure.axis}. Pass the axis as `structure=Channels(axis)`."
                )
            along = gamma.reshape([-1 if n == structure.axis % w.ndim else 1 for n in range(w.ndim)])
            scores[i] = jnp.broadcast_to(along, w.shape)
            scores[places[name]] = gamma
    return jax.tree.unflatten(treedef, scores)


def _shown(paths: Sequence[str]) -> str:
    return ", ".join(map(repr, paths[:20])) + (", ..." if len(paths) > 20 else "")
