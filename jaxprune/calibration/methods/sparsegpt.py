"""SparseGPT: optimal brain surgery, input by input, with one inverse Hessian for all outputs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from jaxprune.calibration.methods.keep import keep_costly
from jaxprune.host import is_on_host, to_device
from jaxprune.statistics.moments import Kind
from jaxprune.structures.matrix import MatrixStructure

_INPUTS, _OUTPUTS = 128, 64  # small matrices are padded to multiples of these
_NEVER = 1e38  # a cost above all others; infinite ones would make NaN in the mean of a block


@dataclasses.dataclass(frozen=True)
class SparseGPT:
    r"""Prunes input by input; the weights of the following inputs compensate the pruned weights.

    Let $H = X^T X$ + damping and $U^T U = H^{-1}$ with $U$ upper triangular. The weight $w_{jo}$ costs
    $w_{jo}^2 / U_{jj}^2$, and its removal changes the weights after it by $-U_{j,j:} w_{jo} / U_{jj}$. The
    cheapest weights of each block of inputs are pruned (with N:M: of each group as it is reached).

    Args:
      block: number of inputs whose masks are chosen together, a multiple of N:M's m and of a block's inputs.
      damping: number that is added to the diagonal of $X^T X$, relative to the mean of the diagonal.

    Raises:
      ValueError: if `block` is below 1 or `damping` is negative.

    References:
      Frantar, Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, 2023,
      arXiv:2301.00774.
    """

    block: int = 128
    damping: float = 0.01
    moments: ClassVar[Kind] = "full"

    def __post_init__(self):
        if not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"SparseGPT `block` must be an int of at least 1, got {self.block!r}.")
        if not self.damping >= 0:
            raise ValueError(f"SparseGPT `damping` must not be negative, got {self.damping!r}.")

    def check(self, structure: MatrixStructure) -> None:
        length = structure.matrix_units().inputs
        if self.block % length:
            raise ValueError(
                f"SparseGPT `block` must be a multiple of {length} for {structure!r}, got {self.block}."
            )

    def factorize(self, gram: jax.Array) -> jax.Array:
        """Upper triangular U with U^T U the inverse of the damped X^T X."""
        return _factorize(gram, self.damping)

    def solve(
        self, w: jax.Array, gram: jax.Array, factor: jax.Array, n_pruned: Any, structure: MatrixStructure
    ) -> tuple[jax.Array, jax.Array]:
        """Pruned weights (inputs, outputs) and their mask."""
        units = structure.matrix_units()
        if units.are_weights and units.kept is None and is_on_host(w) and is_on_host(factor):
            return self._solve_padded(w, gram, factor, n_pruned, structure)
        return _solve(w, factor, jnp.diagonal(gram) <= 0, n_pruned, None, self.block, structure)

    def _solve_padded(
        self, w: jax.Array, gram: jax.Array, factor: jax.Array, n_pruned: Any, structure: MatrixStructure
    ) -> tuple[jax.Array, jax.Array]:
        """The same for a matrix that is padded to one of few shapes, each of which is compiled once."""
        inputs, outputs = w.shape
        step = self.block if inputs > self.block else min(self.block, _INPUTS)
        below, beside = -inputs % step, -outputs % _OUTPUTS
        dead = np.pad(np.diagonal(np.asarray(gram)) <= 0, (0, below))
        wide = np.pad(np.asarray(w), ((0, below), (0, beside)))
        factor = np.pad(np.asarray(factor), (0, below)) if below else factor
        found = _solve(wide, factor, dead, n_pruned, (inputs, outputs), self.block, structure)
        new, mask = (to_device(np.asarray(x)[:inputs, :outputs], w) for x in found)
        return new, mask


def damped(gram: jax.Array, share: float) -> jax.Array:
    """X^T X plus a fraction of the mean of its diagonal, and with 1 on the diagonal for inputs that are always 0."""
    diagonal = jnp.diagonal(gram)
    dead = diagonal <= 0
    return gram + jnp.diag(jnp.where(dead, 1.0, share * jnp.mean(diagonal)).astype(gram.dtype))


@jax.jit
def _factorize(gram: jax.Array, share: Any) -> jax.Array:
    """The inverse factor; damping is multiplied by ten as long as X^T X is indefinite in float32."""

    def attempt(carry):
        share, _, tries = carry
        return jnp.maximum(10 * share, 1e-6), inverse_factor(damped(gram, share)), tries + 1

    def failed(carry):
        return (carry[2] == 0) | (~jnp.all(jnp.isfinite(carry[1])) & (carry[2] < 9))

    return lax.while_loop(failed, attempt, (jnp.asarray(share, jnp.float32), gram, 0))[1]


def inverse_factor(h: jax.Array) -> jax.Array:
    """Upper triangular U with U^T U = H^-1: the inverse of M, where H = M M^T and M is upper triangular."""
    return _inverse_upper(jnp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1])


def _inverse_upper(m: jax.Array) -> jax.Array:
    """Inverse of an upper triangular matrix by recursive halving, mostly by matrix products."""
    n = len(m)
    if n <= 128:
        return solve_triangular(m, jnp.eye(n, dtype=m.dtype), lower=False)
    half = n // 2
    first, last = _inverse_upper(m[:half, :half]), _inverse_upper(m[half:, half:])
    multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    corner = -multiply(multiply(first, m[:half, half:]), last)
    zeros = jnp.zeros((n - half, half), m.dtype)
    return jnp.block([[first, corner], [zeros, last]])


@functools.partial(jax.jit, static_argnames=("block", "structure"))
def _solve(
    w: jax.Array,
    u: jax.Array,
    dead: jax.Array,
    n_pruned: Any,
    size: tuple[Any, Any] | None,
    block: int,
    structure: MatrixStructure,
) -> tuple[jax.Array, jax.Array]:
    """Pruned weights and their mask; what is in `w` beyond this `size`, if one is given, is padding."""
    inputs, outputs = w.shape
    size = w.shape if size is None else size
    units = structure.matrix_units()
    block = min(block, -(-inputs // units.inputs) * units.inputs)
    starts = range(0, inputs, block)
    padding = len(starts) * block - inputs
    w = jnp.pad(w, ((0, padding), (0, 0)))
    dead = jnp.pad(dead, (0, padding))
    own_columns = (jnp.arange(outputs) < size[1])[None, :]
    u = jnp.pad(u, ((0, padding), (0, padding)))
    rows = len(starts) * block
    u = u + jnp.diag((jnp.arange(rows) >= size[0]).astype(u.dtype))
    scale = 1 / jnp.square(jnp.diagonal(u))
    order = jnp.arange(rows)

    def prune_block(carry, start):
        w, pruned = carry
        here = lax.dynamic_slice_in_dim(w, start, block)
        u_rows = lax.dynamic_slice_in_dim(u, start, block)  # (block, rows)
        u_here = lax.dynamic_slice_in_dim(u_rows, start, block, axis=1)
        scale_here = lax.dynamic_slice_in_dim(scale, start, block)
        dead_here = lax.dynamic_slice_in_dim(dead, start, block)
        real = (start + jnp.arange(block) < size[0])[:, None] & own_columns

        def costs(weights):
            return jnp.where(real, jnp.square(weights) * scale_here[:, None], _NEVER)

        if units.kept is not None:  # N:M: the mask of each group is chosen when the group is reached
            mask = jnp.ones((block, outputs), bool)
        else:
            count, pruned = _count_up_to(start, block, size, n_pruned, pruned, structure)
            unseen = dead_here[:, None] & own_columns
            mask = keep_costly(costs(here), here, unseen, count, structure)

        def prune_input(j, carry):
            here, mask, errors = carry
            if units.kept is not None:
                mask = lax.cond(
                    j % units.inputs == 0,
                    lambda: _group_mask(costs(here), here, dead_here, mask, j, structure),
                    lambda: mask,
                )
            row = here[j]
            error = jnp.where(mask[j], 0.0, row) / u_here[j, j]
            after = jnp.where(jnp.arange(block) > j, u_here[j], 0.0)
            here = here.at[j].set(jnp.where(mask[j], row, 0.0)) - after[:, None] * error[None, :]
            return here, mask, errors.at[j].set(error)

        here, mask, errors = lax.fori_loop(0, block, prune_input, (here, mask, jnp.zeros_like(here)))
        u_after = jnp.where(order[None, :] >= start + block, u_rows, 0.0)
        w = lax.dynamic_update_slice_in_dim(w, here, start, axis=0)
        w = w - jnp.matmul(u_after.T, errors, precision=lax.Precision.HIGHEST)
        return (w, pruned), mask

    (w, _), masks = lax.scan(
        prune_block, (w, jnp.zeros((), jnp.int32)), jnp.arange(0, rows, block, dtype=jnp.int32)
    )
    mask = masks.reshape(rows, outputs)[:inputs]
    return jnp.where(mask, w[:inputs], 0.0), mask


def _count_up_to(
    start: Any, block: int, size: tuple[Any, Any], n_pruned: Any, before: Any, structure: MatrixStructure
) -> tuple[Any, Any]:
    """Number of units to prune in a block of inputs, and up to its end: `n_pruned` in proportion to the position."""
    length = structure.matrix_units().inputs
    inputs, outputs = size
    columns = structure.unit_shape((length, outputs))[1]
    total = -(-inputs // length)
    reached = jnp.minimum((start + block) // length, total)
    # n_pruned * reached / total, rounded down, without passing 2^31: by quotient and remainder.
    quotient, remainder = n_pruned // total, n_pruned % total
    up_to = quotient * reached + remainder * reached // total
    return jnp.minimum(up_to - before, (reached - start // length) * columns), up_to


def _group_mask(
    costs: jax.Array, w: jax.Array, dead: jax.Array, mask: jax.Array, start: Any, structure: MatrixStructure
) -> jax.Array:
    length = structure.matrix_units().inputs
    costs, w, dead = (lax.dynamic_slice_in_dim(x, start, length) for x in (costs, w, dead))
    return lax.dynamic_update_slice_in_dim(mask, keep_costly(costs, w, dead, 0, structure), start, axis=0)
