"""The cost of pruning without training, told before it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxprune.calibration.engine.cost import CalibrationCost, cost_of
from jaxprune.calibration.engine.fitting import check_structure
from jaxprune.calibration.engine.model import open_model
from jaxprune.calibration.engine.shares import targets_by_default
from jaxprune.calibration.methods import Method, Refinement, Refit, SparseGPT
from jaxprune.params import PyTree
from jaxprune.structures import Structure, Unstructured


def calibration_cost(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    structure: Structure = Unstructured(),
    method: Method = SparseGPT(),
    *,
    refine: Sequence[Refinement | Refit] = (),
    dense_targets: float | None = None,
    statistics: bool = True,
    where: PyTree | None = None,
) -> CalibrationCost:
    """Estimates what `reconstruct` computes, how much memory its arrays take, and how long it takes.

    Operations and bytes follow from shapes, without running `fn`: passes of the batches, X^T X, factorizations,
    solves, refinements and the training of windows. The time is that of these operations at the speed of a small
    product and of a chain of elementwise operations, which are timed. Compilation is not in it: on small models it
    takes longer than all the rest. Memory that the program itself takes, such as JAX's, is not in it either.

    Args:
      fn: function of (params, *inputs).
      params: pytree of arrays.
      batches: iterable of batches of the same shape, as for `reconstruct`.
      structure, method, refine, dense_targets, statistics, where: as for `reconstruct`.

    Returns:
      `CalibrationCost` (flops, bytes, seconds); printing it shows a sentence.

    Raises:
      ValueError: if there is no batch, batches differ in shape, or a weight of `where` multiplies no activations.
      TypeError: if parameters are tracers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.ones((64, 32))}
      >>> fn = lambda params, x: x @ params["w"]
      >>> one, two = (jp.calibration_cost(fn, params, [jnp.ones((500, 64))] * n) for n in (1, 2))
      >>> round(two.flops - one.flops) == 2 * 500 * 64 * 64       # X^T X of one more batch
      True
    """
    cutting = check_structure(structure)
    method.check(cutting)
    model = open_model(fn, params, batches, where, None)
    if dense_targets is None:
        dense_targets = targets_by_default(model.program.uses, method.moments == "full")
    single = [each for each in refine if not isinstance(each, Refit)]
    refits = [each for each in refine if isinstance(each, Refit)]
    is_full = bool(method.moments == "full" or single or dense_targets)
    return cost_of(
        model, cutting, method, single, refits[0] if refits else None, dense_targets, statistics, is_full
    )
