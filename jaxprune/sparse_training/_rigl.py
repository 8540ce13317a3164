"""The rigged lottery: drop by magnitude, grow where the gradient is largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxprune.params import PyTree
from jaxprune.scores import magnitude
from jaxprune.sparse_training._dynamic import dynamic
from jaxprune.structures import Structure, Unstructured


def rigl(
    inner: optax.GradientTransformation,
    sparsity: Any = None,
    *,
    end: int,
    every: int = 100,
    fraction: float = 0.3,
    masks: PyTree | None = None,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    key: jax.Array | None = None,
    score: Callable[..., PyTree] = magnitude,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that each layer trains a fixed number of weights, which move to where gradients are large.

    At the steps t = every, 2 every, ... before `end`, each layer with k kept weights drops the `round(f_t k)` of
    smallest magnitude and grows as many where `|dL/dw|` is largest: `f_t = fraction / 2 (1 + cos(pi t / end))`.

    The gradient of the loss at masked parameters is dense, pruned weights included, so no second gradient is
    needed. It is used for growing only at the steps that move masks. Pass it unmasked, and put this wrapper
    outermost.

    As in the paper, a step that moves masks changes nothing else: the inner optimizer and its step count wait.
    Grown weights start at 0, with their moments as after `init` of the optimizer. The candidates for growing are
    all weights that are not kept after the drop. A weight that was just dropped may be grown again; it then
    keeps its value and its moments. Memory that does not have the shape of the parameter (Adafactor's rows and
    columns) is not reset.

    Args:
      inner: any optax optimizer.
      sparsity: fraction of each leaf to prune, in [0, 1), or a tree of them (an allocation), for random initial
        masks.
      end: step from which the masks no longer move; the paper uses three quarters of the training.
      every: number of steps between two moves of the masks.
      fraction: fraction of the kept weights that is dropped and regrown at first.
      masks: initial masks instead of `sparsity`: a tree, a prefix of one, or a function of the parameters.
      structure: how weights form units, but not `NM`. Magnitude and gradient of a unit are means over its weights.
      where: the leaves whose masks move: a tree of bools, a prefix of one, or a function of the parameters that
        returns one; None for `prunable(params)`, or for the leaves that `masks` prunes.
      key: for the random masks; may be traced: under `vmap` over replicates build the wrapper inside.
      score: params -> scores, or (params, key) -> scores: the lowest kept ones are dropped.

    Returns:
      A transformation whose state is a `DynamicState`.

    Raises:
      ValueError: if neither or both of `sparsity` and `masks` are given, `sparsity` is given without a `key`, or
        the fraction is outside [0, 1]; at `init`, as `make_masks` does; if `params` is not passed to `update`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
      >>> grads = {"w": jnp.array([[0.0, 0.0, -2.0, 1.0]])}
      >>> masks = {"w": jnp.array([[True, True, False, False]])}
      >>> tx = jp.sparse_training.rigl(optax.sgd(0.1), masks=masks, end=10, every=1, fraction=0.6)
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["w"])
      [[4. 3. 0. 0.]]
      [[4. 0. 0. 0.]]
      [[4. 0. 0. 0.]]
      >>> jp.get_masks(state)["w"].astype(int)
      Array([[1, 0, 1, 0]], dtype=int32)

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019, arXiv:1911.11134.
    """

    def grow(updates: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        del params, step
        return magnitude(updates)

    return dynamic(inner, grow, sparsity, masks, end, every, fraction, structure, where, key, score)
