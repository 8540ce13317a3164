"""Targets from the dense model: what a layer should give, so that it makes up for the layers before it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from jaxprune.calibration.model import Model
from jaxprune.calibration.moments import cross_moment
from jaxprune.calibration.program import Program, Use
from jaxprune.calibration.rows import DotRows, Rows, weights_of_rows
from jaxprune.calibration.stream import Site

_DAMPING = 0.01  # of each diagonal entry of X^T X: how much a change of the target has to explain


class DenseTargets:
    """The dense model beside the pruned one, site by site."""

    def __init__(self, model: Model):
        self._model = model
        found = {use: _added_to(model.program, use) for use in model.program.uses}
        self._sums = {use: total for use, total in found.items() if total is not None}
        self._dense = model.stream([result for result, _ in self._sums.values()])
        self._sites = iter(self._dense)
        self.pruned = model.stream([other for _, other in self._sums.values()])

    def at(self, site: Site, gram: jax.Array) -> dict[Use, Any]:
        """For each use of a site a function from its dense weights to those that meet the dense outputs."""
        there, row_weights = next(self._sites), self._model.row_weights
        cross = None
        targets: dict[Use, Any] = {}
        for use in site.uses:
            if use in self._sums:
                result, other = self._sums[use]
                outputs = zip(self._dense.take(result), self.pruned.take(other), strict=True)
                moment = _output_moment(site.activations, outputs, use.rows, row_weights)
                targets[use] = functools.partial(_from_outputs, gram=gram, moment=moment)
                continue
            if cross is None:
                cross = cross_moment(site.activations, there.activations, use.rows, row_weights)
            targets[use] = functools.partial(_from_inputs, gram=gram, cross=cross)
        return targets


def _added_to(program: Program, use: Use) -> tuple[int, int] | None:
    """The sum that takes up a product and nothing else does, and its other operand: a residual stream.

    None where there is none, or where the other operand is only known after weights that come later.
    """
    if use.out is None or not isinstance(use.rows, DotRows) or use.rows.groups:
        return None
    readers = [step for step in program.steps if use.out in step.ins]
    if len(readers) != 1 or not isinstance(readers[0].key, tuple) or readers[0].key[0] != "add":
        return None
    (reader,) = readers
    others = [n for n in reader.ins if n != use.out]
    if len(others) != 1 or others[0] not in program.batched:
        return None
    later = {u.out for u in program.uses[program.uses.index(use) :]}
    maker = {out: step for step in program.steps for out in step.outs}
    stack, seen = [others[0]], set()
    while stack:
        number = stack.pop()
        if number in later:
            return None
        if number in maker and number not in seen:
            seen.add(number)
            stack.extend(maker[number].ins)
    return reader.outs[0], others[0]


def _output_moment(activations: Sequence[Any], outputs: Any, rows: Rows, row_weights: Sequence[Any]) -> Any:
    """X^T (dense sum - other operand) over all batches, (1, inputs, outputs)."""
    total: Any = 0.0
    for x, (result, other), w in zip(activations, outputs, row_weights, strict=False):
        of_rows = None if w is None else weights_of_rows(w, rows, x.shape)
        total = _add_output_moment(rows, total, x, result, other, of_rows)
    return total


@functools.partial(jax.jit, static_argnums=0)
def _add_output_moment(rows: Rows, total: Any, x: Any, result: Any, other: Any, weights: Any) -> jax.Array:
    x = rows(x).astype(jnp.float32)
    wanted = (result.astype(jnp.float32) - other.astype(jnp.float32)).reshape(1, x.shape[1], -1)
    if weights is not None:
        counts = weights[None, :, None] != 0
        x = jnp.where(counts, x * weights.astype(jnp.float32)[None, :, None], 0)
        wanted = jnp.where(counts, wanted, 0)
    return total + jnp.einsum("gni,gno->gio", x, wanted, precision=lax.Precision.HIGHEST)


@jax.jit
def _from_inputs(w0: jax.Array, gram: jax.Array, cross: jax.Array) -> jax.Array:
    wanted = jnp.einsum("gij,gjo->gio", cross, w0, precision=lax.Precision.HIGHEST)
    return jax.vmap(_nearest)(w0, gram, wanted)


@jax.jit
def _from_outputs(w0: jax.Array, gram: jax.Array, moment: jax.Array) -> jax.Array:
    return jax.vmap(_nearest)(w0, gram, moment)


def _nearest(w0: jax.Array, gram: jax.Array, wanted: jax.Array) -> jax.Array:
    """Minimises ||X W - Y||^2 + damping * sum of diag(X^T X) (W - W0)^2, with `wanted` = X^T Y."""
    diagonal = jnp.diagonal(gram)
    scale = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    scaled = gram * scale[:, None] * scale[None, :]
    h = scaled + _DAMPING * jnp.eye(len(scale)) + jnp.diag(jnp.where(diagonal > 0, 0.0, 1.0))
    pull = wanted - jnp.matmul(gram, w0, precision=lax.Precision.HIGHEST)
    change = scale[:, None] * cho_solve(cho_factor(h), scale[:, None] * pull)
    return jnp.where(jnp.all(jnp.isfinite(change)), w0 + change, w0)
