"""Masks by a score; the kept weights keep their values."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from jaxprune.calibration.methods.keep import keep_units, unit_costs
from jaxprune.scores._ria import relative_importance
from jaxprune.scores._scorer import call_score
from jaxprune.scores._wanda import weighted
from jaxprune.selection import select
from jaxprune.statistics.moments import Kind
from jaxprune.structures.matrix import MatrixStructure

Score = Literal["magnitude", "wanda", "ria"]


@dataclasses.dataclass(frozen=True)
class MaskOnly:
    """Prunes the weights of the lowest scores in each layer; the other weights keep their values.

    Args:
      score: "magnitude", "wanda" or "ria", or a function of parameters that returns scores, larger = keep, as in
        `jp.gradual`. It is called with each weight as a matrix (inputs, outputs), in float32, and returns an array
        of this shape; it must be traceable.
      per_output: whether weights are compared only with weights of the same output, so that all outputs have the same
        sparsity. None for the choice of the score's authors: only Wanda compares per output. It applies
        to unstructured pruning only; N:M groups and blocks are compared as always.

    Raises:
      ValueError: if `score` is unknown; in `jp.reconstruct`, if the scores have another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params, x = {"w": jnp.array([[3.0, 1.0], [1.0, 2.0]])}, jnp.ones((4, 2))
      >>> method = jp.MaskOnly(lambda w: -jp.scores.magnitude(w))  # prunes the largest
      >>> jp.reconstruct(lambda p, x: x @ p["w"], params, [x], 0.5, method=method)[0]["w"]
      Array([[0., 1.],
             [1., 0.]], dtype=float32)

    References:
      Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023, arXiv:2306.11695.
      Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models, 2024.
    """

    score: Score | Callable[[jax.Array], jax.Array] = "wanda"
    per_output: bool | None = None
    moments: ClassVar[Kind] = "diagonal"

    def __post_init__(self):
        if not callable(self.score) and self.score not in get_args(Score):
            raise ValueError(
                f"MaskOnly `score` must be one of {', '.join(map(repr, get_args(Score)))}, or a function of "
                f"parameters, got {self.score!r}."
            )

    def check(self, structure: MatrixStructure) -> None:
        del structure

    def factorize(self, gram: jax.Array) -> jax.Array:
        """The inputs' norms."""
        return jnp.sqrt(gram if gram.ndim == 1 else jnp.diagonal(gram))

    def solve(
        self, w: jax.Array, gram: jax.Array, factor: jax.Array, n_pruned: Any, structure: MatrixStructure
    ) -> tuple[jax.Array, jax.Array]:
        """Pruned weights (inputs, outputs) and their mask."""
        del gram
        return _solve(w, factor, n_pruned, self, structure)


@functools.partial(jax.jit, static_argnames=("method", "structure"))
def _solve(
    w: jax.Array, norms: jax.Array, n_pruned: Any, method: MaskOnly, structure: MatrixStructure
) -> tuple[jax.Array, jax.Array]:
    match method.score:
        case "magnitude":
            score = structure.unit_scores(jnp.abs(w))
        case "wanda":
            score = unit_costs(weighted(jnp.abs(w), norms), w, norms == 0, structure)
        case "ria":
            score = unit_costs(weighted(relative_importance(w), norms, 0.5), w, norms == 0, structure)
        case given:
            score = structure.unit_scores(_scored(given, w))
    units = structure.matrix_units()
    per_output = method.score == "wanda" if method.per_output is None else method.per_output
    if per_output and units.are_weights and units.kept is None:
        mask = keep_highest_per_output(score, n_pruned)
    else:
        mask = keep_units(score, n_pruned, structure, w.shape)
    return jnp.where(mask, w, 0.0), mask


def _scored(score: Callable[..., Any], w: jax.Array) -> jax.Array:
    found = call_score(score, w, None)
    if jnp.shape(found) != w.shape:
        raise ValueError(
            f"MaskOnly `score` must return an array of the shape of each weight matrix, {w.shape} here, "
            f"got {jnp.shape(found) if hasattr(found, 'shape') else type(found).__name__}."
        )
    return jnp.asarray(found, jnp.float32)


def keep_highest_per_output(scores: jax.Array, n_pruned: Any) -> jax.Array:
    """Mask (inputs, outputs) that prunes the same number of weights of every output, those of the lowest scores.

    If n_pruned is not a multiple of the number of outputs, the remaining weights are pruned in the outputs whose
    next lowest score has the lowest flat index.
    """
    inputs, outputs = scores.shape
    equal, over = n_pruned // outputs, n_pruned % outputs
    kept = jax.vmap(lambda column: select([column], equal)[0], in_axes=1, out_axes=1)(scores)
    following = jnp.argmin(jnp.where(kept, scores, jnp.inf), axis=0)
    order = jnp.argsort(following * outputs + jnp.arange(outputs))
    goes = jnp.zeros(outputs, bool).at[order].set(jnp.arange(outputs) < over)
    return kept & ~(goes[None, :] & (jnp.arange(inputs)[:, None] == following[None, :]))
