"""Training of a pruned model toward the outputs of the dense one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.healing.arrays import split
from jaxprune.healing.batches import Stacked, order, stacked
from jaxprune.healing.loop import Student, train
from jaxprune.healing.losses import Loss, check_outputs, loss_function
from jaxprune.healing.trained import trained
from jaxprune.masking import apply_masks
from jaxprune.params import PyTree, Where, mask_leaves
from jaxprune.transforms import masked
from jaxprune.whole_numbers import check_whole


class Distilled(NamedTuple):
    """What `distill` returns.

    params: the healed parameters, a tree like those of the small model; losses: the loss at each step before its
    update, float32 (steps,).
    """

    params: PyTree
    losses: jax.Array


def distill(
    small_fn: Callable[..., Any],
    small: PyTree,
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    optimizer: Any,
    *,
    steps: int,
    loss: Loss = "mse",
    temperature: float = 1.0,
    masks: PyTree | None = None,
    where: Where = None,
    key: jax.Array | None = None,
    cache_bytes: int = 2**30,
    progress: bool = False,
    history: bool = False,
) -> Any:
    r"""Trains a pruned model so that its outputs become those of the dense model on some batches, without labels.

    Minimizes $\ell(f_{small}(\theta, x), f(\theta_{dense}, x))$ over $\theta$. The model may be small
    (`plan.compact(fn)` and `plan.shrink(params)`) or masked (`fn` itself, and `masks`). All steps are one compiled
    program. Leaves narrower than float32 are trained as float32 copies, so that small updates are not lost, and the
    model computes with them in its own dtype. Statistics of activations, such as BatchNorm's, are not trained:
    `jp.reestimate_statistics` computes them from batches.

    Args:
      small_fn: function of (small, *inputs): the student, in evaluation mode.
      small: its parameters, as any pytree: Linen's variables, an NNX `State`, an Equinox module, a dict.
      fn: function of (params, *inputs): the teacher. If its outputs are known, they may be the last input, which
        `fn` returns and `small_fn` ignores; `params` may then be {}.
      params: its parameters, which stay as they are.
      batches: iterable of batches of the same shape. A batch is a tuple of inputs, or one input. All are kept on
        the device.
      optimizer: any optax optimizer. It sees `small` with None in the place of leaves that are not trained, and is
        told `value`, `grad` and `value_fn`.
      steps: number of updates. Each takes one batch.
      loss: "mse" for the mean squared error over all entries of all float outputs; "kl" for $T^2$ times the
        Kullback-Leibler divergence of the student's from the teacher's softmax over the last axis of each output;
        or a function of (student's outputs, teacher's outputs, tuple of inputs) that returns a scalar. With labels as
        a last input, which the models take and ignore, it may add the loss on them; with a padding mask among the
        inputs it may leave padding out.
      temperature: T of "kl".
      masks: tree of bool arrays, True = keep, that broadcast to `small` (or a prefix of one, or a function of the
        parameters that returns one): pruned weights are zero from the start, through `jp.masked`.
      where: tree of bools (or a prefix of one, or a function that returns it) that selects the leaves to train; None
        for all float leaves. Statistics are never trained. Large tables of embeddings that lost nothing are worth
        leaving out: a step then neither updates them nor keeps the optimizer's moments of them. For one entry of a
        dict of layers, `{name: name != "embeddings" for name in small}` (`jp.prunable` leaves out biases and norms
        too).
      key: with a key, every epoch takes the batches in a newly drawn order; None for the given order, over and over.
      cache_bytes: the teacher's outputs are computed once for each batch and kept if they need at most so much
        memory; else anew at each step. 0 keeps none.
      progress: whether to show a progress bar.
      history: whether to return the loss of every step too.

    Returns:
      The trained parameters, a tree like `small`; with `history=True` a `Distilled`: (params, losses).

    Raises:
      ValueError: if there is no batch, or batches differ in shape; if outputs of both functions differ in
        structure or shape and `loss` is a name; if nothing is left to train; if masks don't match.
      TypeError: if `optimizer` is none; if `where` or `masks` hold other than bools.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> fn = lambda params, x: x @ params["w"]
      >>> dense = {"w": jnp.array([[1.0], [1.0]])}
      >>> x = jnp.array([[1.0, 1.0], [2.0, 2.0]])  # the two inputs are alike: one weight can do the work of both
      >>> masks = {"w": jnp.array([[True], [False]])}
      >>> healed, losses = jp.distill(
      ...     fn, dense, fn, dense, [x], optax.sgd(0.1), steps=50, masks=masks, history=True)
      >>> healed["w"].round(3), losses[:2].round(3)
      (Array([[2.],
             [0.]], dtype=float32), Array([2.5  , 0.625], dtype=float32))

    References:
      Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
      Sanh, Wolf, Rush, Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020, arXiv:2005.07683 (distillation
      while weights are pruned).
    """
    check_whole(steps=steps)
    check_whole(at_least=0, cache_bytes=cache_bytes)
    if not callable(getattr(optimizer, "update", None)) or not callable(getattr(optimizer, "init", None)):
        raise TypeError(f"`optimizer` must be an optax optimizer, got {optimizer!r}.")
    compare = loss_function(loss, temperature)
    given = stacked(batches, None if key is not None else steps)
    held = None if masks is None else mask_leaves(small, masks)
    if held is not None:
        small = apply_masks(small, jax.tree.unflatten(jax.tree.structure(small), held))
    parts = trained(small, where)
    if held is not None:
        optimizer = masked(optimizer, parts.part(held))
    dense, join = split(params)
    teacher_shapes = _outputs(lambda dense, *inputs: fn(join(dense), *inputs), dense, given)
    arrays, join_small = split(small)
    student_shapes = _outputs(lambda arrays, *inputs: small_fn(join_small(arrays), *inputs), arrays, given)
    check_outputs(loss, student_shapes, teacher_shapes)

    def teach_anew(dense: Any, number: Any, inputs: tuple[Any, ...]) -> Any:
        del number
        return fn(join(dense), *inputs)

    def look_up(kept: Any, number: Any, inputs: tuple[Any, ...]) -> Any:
        del inputs
        return jax.tree.map(lambda x: x[number], kept)

    teach, taught = teach_anew, dense
    if _bytes(teacher_shapes) * given.number <= cache_bytes:
        teach, taught = look_up, _answers(teach_anew, dense, given)
    student = Student(small_fn, parts, compare, optimizer)
    numbers = order(given.number, steps, key)
    found = Distilled(*train(student, teach, taught, given, numbers, progress))
    return found if history else found.params


def _outputs(fn: Callable[..., Any], arrays: list[Any], batches: Stacked) -> Any:
    """The outputs for one batch, abstract."""
    return jax.eval_shape(lambda a, b: fn(a, *batches.pick(b, 0)), arrays, batches.arrays)


def _answers(teach: Callable[..., Any], dense: Any, batches: Stacked) -> Any:
    """The teacher's outputs for all batches, with a leading axis of batches."""

    @jax.jit
    def answers(dense: Any, arrays: Any) -> Any:
        numbers = jnp.arange(batches.number)
        return jax.lax.map(lambda number: teach(dense, number, batches.pick(arrays, number)), numbers)

    return answers(dense, batches.arrays)


def _bytes(outputs: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(outputs))
