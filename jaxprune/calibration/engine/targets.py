"""Targets from the dense model: outputs with which a layer compensates the errors of the layers before it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.jaxprs.program import Use
from jaxprune.jaxprs.rows import Rows, weights_of_rows
from jaxprune.jaxprs.stream import Site
from jaxprune.statistics.moments import Moments, cross_moment

_DAMPING = 0.01  # of each diagonal entry of X^T X: penalty on changes of the weights for the target


class DenseTargets:
    """The dense model, run beside the pruned model site by site; `also` are other values that its stream keeps."""

    def __init__(
        self,
        model: CalibrationModel,
        streams: dict[Use, tuple[int, int]],
        strength: float,
        also: Sequence[int] = (),
    ):
        self._streams = streams
        self._strength = strength
        self._row_weights = model.row_weights
        self.stream = model.stream([*(number for pair in streams.values() for number in pair), *also])
        self._sites = iter(self.stream)

    def skip(self, uses: Sequence[Use], passing: Sequence[Any] | None) -> None:
        """Advances the dense model past a site, as `at` does."""
        self._reach(uses, passing)

    def _reach(self, uses: Sequence[Use], passing: Sequence[Any] | None) -> tuple[Site, dict[Use, Any]]:
        """The next site, and the products and residual streams there."""
        there = next(self._sites)
        if passing is None or not self._strength:
            return there, {}
        return there, {use: tuple(map(self.stream.take, self._streams[use])) for use in uses}

    def at(self, site: Site, moments: Moments, passing: Sequence[Any] | None) -> dict[Use, Any]:
        """For each use of a site a function from its dense weights to weights that reproduce the dense outputs.

        `moments` are the moments of the site's inputs in the pruned model. `passing` is the residual stream of the
        pruned model that the product of the site is added to.
        """
        there, taken = self._reach(site.uses, passing)
        if not self._strength:
            return {}
        gram, scale = moments.xtx(), moments.largest_scale
        cross = None
        targets: dict[Use, Any] = {}
        for use in site.uses:
            if passing is not None:
                products, streams = taken[use]
                wanted = list(zip(products, streams, passing, strict=True))
                moment = _output_moment(site.activations, wanted, use.rows, self._row_weights, scale)
                targets[use] = functools.partial(
                    _from_outputs, gram=gram, moment=moment, strength=self._strength
                )
                continue
            if cross is None:
                cross = cross_moment(site.activations, there.activations, use.rows, self._row_weights, scale)
            targets[use] = functools.partial(_from_inputs, gram=gram, cross=cross, strength=self._strength)
        return targets


def _output_moment(
    activations: Sequence[Any],
    wanted: Sequence[Any],
    rows: Rows,
    row_weights: Sequence[Any],
    scale: jax.Array,
) -> Any:
    """X^T (dense product + dense stream - pruned stream) over all batches, (1, inputs, outputs).

    Both sides are divided by `scale`.
    """
    total: Any = jnp.zeros((), jnp.float32)
    for x, (product, stream, passing), w in zip(activations, wanted, row_weights, strict=False):
        of_rows = None if w is None else weights_of_rows(w, rows, x.shape)
        total = _add_output_moment(rows, total, x, product, stream, passing, of_rows, scale)
    return total


@functools.partial(jax.jit, static_argnums=0)
def _add_output_moment(
    rows: Rows, total: Any, x: Any, product: Any, stream: Any, passing: Any, weights: Any, scale: jax.Array
) -> jax.Array:
    x = rows(x).astype(jnp.float32) / scale
    product, stream, passing = (v.astype(jnp.float32) / scale for v in (product, stream, passing))
    wanted = (product + (stream - passing)).reshape(1, x.shape[1], -1)
    if weights is not None:
        counts = weights[None, :, None] != 0
        x = jnp.where(counts, x * weights.astype(jnp.float32)[None, :, None], 0)
        wanted = jnp.where(counts, wanted, 0)
    return total + jnp.einsum("gni,gno->gio", x, wanted, precision=lax.Precision.HIGHEST)


@jax.jit
def _from_inputs(w0: jax.Array, gram: jax.Array, cross: jax.Array, strength: Any) -> jax.Array:
    wanted = jnp.einsum("gij,gjo->gio", cross, w0, precision=lax.Precision.HIGHEST)
    return w0 + strength * jax.vmap(_change)(w0, gram, wanted)


@jax.jit
def _from_outputs(w0: jax.Array, gram: jax.Array, moment: jax.Array, strength: Any) -> jax.Array:
    return w0 + strength * jax.vmap(_change)(w0, gram, moment)


def _change(w0: jax.Array, gram: jax.Array, wanted: jax.Array) -> jax.Array:
    """W - W0 that minimises ||X W - Y||^2 + damping * sum of diag(X^T X) (W - W0)^2, with `wanted` = X^T Y."""
    diagonal = jnp.diagonal(gram)
    scale = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    scaled = gram * scale[:, None] * scale[None, :]
    h = scaled + jnp.diag(jnp.where(diagonal > 0, 0.0, 1.0).astype(gram.dtype) + _DAMPING)
    pull = wanted - jnp.matmul(gram, w0, precision=lax.Precision.HIGHEST)
    change = scale[:, None] * cho_solve(cho_factor(h), scale[:, None] * pull)
    return jnp.where(jnp.all(jnp.isfinite(change)), change, 0.0)
