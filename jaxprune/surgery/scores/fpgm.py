"""Distance of a unit to the geometric median of its group."""

from __future__ import annotations

import numpy as np

from jaxprune.params import PyTree, is_float_array
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.inference.kept import slices
from jaxprune.surgery.scores._unit_scores import UnitScores
from jaxprune.surgery.scores.entries import arrays_of, places_of


def fpgm_scores(groups: Groups, params: PyTree) -> UnitScores:
    r"""Sum of the distances to the other units of the group: \( s_i = \sum_j \lVert u_i - u_j \rVert_2 \).

    \( u_i \) is the vector of the entries of all member slices of unit i. The geometric median is the point that
    minimizes this sum. Units with a small sum are near the median, and the other units can compensate them.

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
      >>> params = {"up": jnp.array([[0.0, 3.0, 0.0]]), "down": jnp.array([[0.0], [4.0], [0.0]])}
      >>> groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
      >>> jp.surgery.fpgm_scores(groups, params)["down[0]"]
      array([ 5., 10.,  5.])

    References:
      He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration, 2018,
      arXiv:1811.00250 (there over the output slices of one layer).
    """
    arrays = arrays_of(groups, params)
    out = {}
    for group in groups:
        products = np.zeros((group.size, group.size))
        for path, axis in places_of(group):
            if is_float_array(arrays[path]):
                entries = np.moveaxis(np.asarray(arrays[path], np.float64), axis, 0)
                entries = entries.reshape(entries.shape[0], -1)
                for block in slices(groups.model.axes[path][axis], entries, group.atom):
                    block = block - block.mean(0)  # distances do not change, rounding errors become smaller
                    products += block @ block.T
        norms = np.diag(products)
        distances = np.sqrt(np.maximum(norms[:, None] + norms[None, :] - 2 * products, 0))
        out[group.name] = distances.sum(1)
    return UnitScores(out)
