"""Whether a model's function, batches and loss fit each other: told before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.healing.arrays import split
from jaxprune.own_model._model import Model
from jaxprune.own_model.loading import running
from jaxprune.params import PyTree
from jaxprune.tables import shape_text


class Checked(NamedTuple):
    """A model whose parts fit each other.

    model: as the user made it; batches: the inputs of the calibration batches; loss_batches: the whole batches;
    place: the file that it is from.
    """

    model: Model
    batches: tuple[tuple[Any, ...], ...]
    loss_batches: tuple[Any, ...]
    place: str


def checked(model: Model, place: str) -> Checked:
    """Traces the function and the loss, and reads the batches.

    Raises:
      ValueError: if there are no parameters, a function can't be traced, or batches differ from the inputs. The
        message is one line.
    """
    arrays, _ = split(model.params)
    if not arrays:
        raise ValueError("`params` of the model has no arrays.")
    _trace(
        f"`fn` can't be traced at inputs {_shapes(model.inputs)}", place, model.fn, model.params, model.inputs
    )
    batches = () if model.batches is None else running("`batches` failed", place, tuple, model.batches)
    for i, batch in enumerate(batches):
        _check_batch(i, batch, model.inputs)
    inputs = tuple(batch[: len(model.inputs)] for batch in batches)
    if inputs and _specs(inputs[0]) != _specs(model.inputs):
        _trace(
            f"`fn` can't be traced at a batch of {_shapes(inputs[0])}",
            place,
            model.fn,
            model.params,
            inputs[0],
        )
    if model.loss is not None and batches:
        loss = _trace(
            "`loss` can't be traced at the first batch", place, model.loss, model.params, (batches[0],)
        )
        if getattr(loss, "shape", None) != ():
            raise ValueError(f"`loss` must return a scalar, got {_shapes(loss)}.")
    return Checked(model, inputs, batches, place)


def compiled(fn: Callable[..., Any], params: PyTree) -> Callable[..., Any]:
    """The function compiled by `jax.jit`, for trees like `params`, whose other leaves are constants."""
    _, join = split(params)
    run = jax.jit(lambda arrays, *inputs: fn(join(arrays), *inputs))
    return lambda params, *inputs: run(split(params)[0], *inputs)


def _trace(what: str, place: str, fn: Callable[..., Any], params: PyTree, arguments: tuple[Any, ...]) -> Any:
    arrays, join = split(params)
    return running(
        what, place, lambda: jax.eval_shape(lambda arrays, *rest: fn(join(arrays), *rest), arrays, *arguments)
    )


def _check_batch(i: int, batch: Any, inputs: tuple[Any, ...]) -> None:
    if not isinstance(batch, tuple) or len(batch) < len(inputs):
        came = (
            f"a tuple of {len(batch)}" if isinstance(batch, tuple) else f"one of type {type(batch).__name__}"
        )
        raise ValueError(f"each of `batches` must be a tuple of the {len(inputs)} inputs, got {came} at {i}.")
    same = jax.tree.structure(batch[: len(inputs)]) == jax.tree.structure(inputs)
    found, wanted = _specs(batch[: len(inputs)]), _specs(inputs)
    if not same or any(len(a) != len(b) or x != y for (a, x), (b, y) in zip(found, wanted, strict=True)):
        raise ValueError(
            f"the batch at {i} of `batches` has inputs {_shapes(batch[: len(inputs)])}, the example `inputs` have "
            f"{_shapes(inputs)}: their dtypes and numbers of axes must be the same."
        )


def _specs(tree: Any) -> list[tuple[tuple[int, ...], Any]]:
    return [(np.shape(x), getattr(x, "dtype", None) or np.result_type(x)) for x in jax.tree.leaves(tree)]


def _shapes(tree: Any) -> str:
    return ", ".join(f"{dtype} {shape_text(shape)}" for shape, dtype in _specs(tree)) or "none"
