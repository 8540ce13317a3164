"""Swaps: a kept and a pruned weight of one output are swapped as long as the error of the layer falls."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.calibration.methods.least_squares import errors
from jaxprune.structures.matrix import MatrixStructure


@dataclasses.dataclass(frozen=True)
class Swaps:
    r"""Prunes a kept weight $p$ and revives a pruned weight $u$ of the same output, the best pair at a time.

    With $e = w_0 - w$, $c = G e$ and $G = X^T X$, the pair changes the output's squared error by
    $2 w_p c_p + w_p^2 G_{pp} - 2 v c_u' + v^2 G_{uu}$, where $c_u' = c_u + w_p G_{up}$. With `dense_values` the
    revived weight takes its dense value $v = w_{0,u}$, as in the paper. Otherwise it takes the best value,
    $v = c_u' / G_{uu}$. Every output swaps one pair per step while its error falls. The number of kept weights of an
    output and N:M patterns do not change.

    The unstructured pair is the better of two pairs: the cheapest $p$ with the best $u$ for it, or the best $u$ with
    the cheapest $p$ for it. With N:M all pairs of all groups are compared.

    Args:
      steps: maximum number of swaps of each output.
      dense_values: whether a revived weight takes its dense value.

    Raises:
      ValueError: if `steps` is below 1.

    References:
      Zimmer et al., SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale, 2025, arXiv:2512.10922.
    """

    steps: int = 30
    dense_values: bool = False

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Swaps `steps` must be an int of at least 1, got {self.steps!r}.")

    def refine(
        self, w0: jax.Array, gram: jax.Array, w: jax.Array, mask: jax.Array, structure: MatrixStructure
    ) -> tuple[jax.Array, jax.Array]:
        """Weights (inputs, outputs) and mask after the swaps.

        Raises:
          TypeError: if a unit of the structure has several weights.
        """
        units = structure.matrix_units()
        if not units.are_weights:
            raise TypeError(f"Swaps need `structure` Unstructured() or NM(n, m), got {structure!r}.")
        m = 0 if units.kept is None else units.inputs
        return _swap(w0, gram, w, mask, self.steps, m, self.dense_values)


@functools.partial(jax.jit, static_argnames=("steps", "m", "dense_values"))
def _swap(
    w0: jax.Array, gram: jax.Array, w: jax.Array, mask: jax.Array, steps: int, m: int, dense_values: bool
) -> tuple[jax.Array, jax.Array]:
    inputs, outputs = w.shape
    diagonal = jnp.diagonal(gram)[:, None]
    columns = jnp.arange(outputs)
    w0 = jnp.where(diagonal > 0, w0, jnp.where(mask, w, 0.0))  # inputs that are always 0 change nothing
    w = jnp.where(mask, w, 0.0)

    def revived(c, values, g):
        """Value of a revived weight with gradient `c`, and the change of the error by it."""
        v = values if dense_values else jnp.where(g > 0, c / jnp.where(g > 0, g, 1.0), 0.0)
        return v, v * v * g - 2 * v * c

    def best_pair(w, c, mask):
        prune = jnp.where(mask, 2 * w * c + w * w * diagonal, jnp.inf)
        alone = jnp.where(mask, jnp.inf, revived(c, w0, diagonal)[1])
        p1, u2 = jnp.argmin(prune, axis=0), jnp.argmin(alone, axis=0)
        g1 = gram[p1].T  # (inputs, outputs): column o is G[:, p of o]
        change1 = jnp.where(mask, jnp.inf, revived(c + w[p1, columns][None] * g1, w0, diagonal)[1])
        u1 = jnp.argmin(change1, axis=0)
        total1 = prune[p1, columns] + change1[u1, columns]
        # The other order: u first, then the p that is cheapest together with it.
        g2 = gram[u2].T
        c_u = c[u2, columns][None] + w * g2
        change2 = revived(c_u, w0[u2, columns][None], diagonal[u2, 0][None])[1]
        change2 = jnp.where(mask, prune + change2, jnp.inf)
        p2 = jnp.argmin(change2, axis=0)
        total2 = change2[p2, columns]
        first = total1 <= total2
        return jnp.where(first, p1, p2), jnp.where(first, u1, u2), jnp.minimum(total1, total2)

    def best_pair_in_groups(w, c, mask):
        def grouped(x):
            return x.reshape(inputs // m, m, -1)

        group = jnp.arange(inputs // m)
        near = gram.reshape(inputs // m, m, inputs // m, m)[group, :, group]  # (groups, u, p)
        w_, c_, mask_, w0_, g_ = map(grouped, (w, c, mask, w0, diagonal))
        prune = jnp.where(mask_, 2 * w_ * c_ + w_ * w_ * g_, jnp.inf)
        # Axes: (group, u, p, output).
        c_u = c_[:, :, None] + w_[:, None] * near[..., None]
        change = revived(c_u, w0_[:, :, None], g_[:, :, None])[1] + prune[:, None]
        change = jnp.where(~mask_[:, :, None] & mask_[:, None], change, jnp.inf)
        flat = change.reshape(-1, change.shape[-1])
        best = jnp.argmin(flat, axis=0)
        first, u, p = best // (m * m) * m, best // m % m, best % m
        return first + p, first + u, flat[best, columns]

    find = best_pair_in_groups if m else best_pair

    def step(carry):
        i, _, w, c, mask = carry
        p, u, change = find(w, c, mask)
        scale = jnp.sum(w0 * c, axis=0)
        do = change < -1e-6 * jnp.abs(scale)
        w_p = jnp.where(do, w[p, columns], 0.0)
        v = revived(c[u, columns] + w_p * gram[u, p], w0[u, columns], diagonal[u, 0])[0]
        v = jnp.where(do, v, 0.0)
        w = w.at[p, columns].add(-w_p).at[u, columns].add(v)
        mask = mask.at[p, columns].set(mask[p, columns] & ~do)
        mask = mask.at[u, columns].set(mask[u, columns] | do)
        c = c + w_p[None] * gram[p].T - v[None] * gram[u].T
        return i + 1, jnp.any(do), w, c, mask

    c = jnp.matmul(gram, w0 - w, precision=lax.Precision.HIGHEST)
    carry = (0, jnp.array(True), w, c, mask)
    _, _, new, _, new_mask = lax.while_loop(lambda s: (s[0] < steps) & s[1], step, carry)
    new = jnp.where(new_mask, new, 0.0)
    better = errors(w0, gram, new) <= errors(w0, gram, w)
    return jnp.where(better[None], new, w), jnp.where(better[None], new_mask, mask)
