"""Ragged products: each group of rows has its own weight, and the sizes of the groups are data."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs.equations import shape_of
from jaxprune.jaxprs.rows import DotRows
from jaxprune.jaxprs.views import Matrix, View, matrix

ROWS = DotRows((0,), (2,), 3)  # the rows of the result of `routed`


def ragged_product(eqn: JaxprEqn, views: list[View | None]) -> Matrix | None:
    """The weight of a product of the rows (rows, inputs) by a parameter (groups, inputs, outputs), else None."""
    if eqn.primitive.name != "ragged_dot_general" or views[0] is not None or views[1] is None:
        return None
    dims = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, inputs), batch = dims.dot_dimension_numbers
    is_plain = (
        len(shape_of(eqn.invars[0])) == 2
        and len(contracted) == 1
        and tuple(dims.lhs_ragged_dimensions) == (1 - contracted[0],)
        and len(dims.rhs_group_dimensions) == 1
        and not any(batch)
        and eqn.params.get("group_offset") is None
    )
    if not is_plain:
        return None
    (groups,) = dims.rhs_group_dimensions
    outputs = [i for i in range(len(views[1].axes)) if i not in (groups, *inputs)]
    return matrix(views[1], [groups], list(inputs), outputs)


def routed(inputs_axis: int, x: Any, sizes: Any) -> list[Any]:
    """The rows of each group, with zeros in place of rows of other groups: (groups, rows, inputs)."""
    x = jnp.moveaxis(x, inputs_axis, 1)
    ends = jnp.cumsum(sizes)
    row = lax.broadcasted_iota(sizes.dtype, (sizes.shape[0], x.shape[0]), 1)
    mine = (row >= (ends - sizes)[:, None]) & (row < ends[:, None])
    return [jnp.where(mine[:, :, None], x[None], jnp.zeros((), x.dtype))]
