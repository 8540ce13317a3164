"""The training of a student as one compiled program, which the host calls for some steps at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxprune.healing.batches import Stacked
from jaxprune.healing.trained import Trained
from jaxprune.progress import steps_bar

_CALLS = 100  # of the program, where a progress bar is shown


class Carry(NamedTuple):
    """What goes from step to step. losses has a place for every step."""

    part: Any
    opt_state: Any
    losses: jax.Array


class Student(NamedTuple):
    """What is trained, and how.

    fn: (params, *inputs) -> outputs; split: its parameters; loss: (outputs, teacher's outputs, inputs) -> loss.
    """

    fn: Callable[..., Any]
    split: Trained
    loss: Callable[[Any, Any, Any], Any]
    optimizer: Any


def train(
    student: Student,
    teach: Callable[[Any, Any, tuple[Any, ...]], Any],
    taught: Any,
    batches: Stacked,
    numbers: jax.Array,
    progress: bool,
) -> tuple[Any, jax.Array]:
    """The trained parameters and the loss at each step.

    teach: (taught, number of a batch, its inputs) -> the teacher's outputs; taught: arrays that it needs.
    """
    optimizer = optax.with_extra_args_support(student.optimizer)

    def step(i: Any, carry: Carry, rest: Any, taught: Any, arrays: Any, numbers: Any) -> Carry:
        inputs = batches.pick(arrays, numbers[i])
        target = lax.stop_gradient(teach(taught, numbers[i], inputs))

        def objective(part: Any) -> jax.Array:
            outputs = student.fn(student.split.whole(part, rest), *inputs)
            return _scalar(student.loss(outputs, target, inputs))

        loss, grads = jax.value_and_grad(objective)(carry.part)
        told = {"value": loss, "grad": grads, "value_fn": objective}
        updates, opt_state = optimizer.update(grads, carry.opt_state, carry.part, **told)
        part = optax.apply_updates(carry.part, updates)
        losses = carry.losses.at[i].set(loss.astype(carry.losses.dtype))
        return _like(carry, Carry(part, opt_state, losses))

    @functools.partial(jax.jit, donate_argnums=0)
    def run(carry: Carry, start: Any, stop: Any, *constants: Any) -> Carry:
        return lax.fori_loop(start, stop, lambda i, carry: step(i, carry, *constants), carry)

    part = student.split.copies()
    steps = len(numbers)
    opt_state = jax.tree.map(_copied, optimizer.init(part))  # which may hold the parameters themselves
    carry = Carry(part, opt_state, jnp.zeros(steps, jnp.float32))
    rest = student.split.rest()
    size = max(1, -(-steps // _CALLS)) if progress else steps
    with steps_bar("distill", steps, progress) as advance:
        for start in range(0, steps, size):
            stop = min(start + size, steps)
            carry = run(carry, start, stop, rest, taught, batches.arrays, numbers)
            advance(carry.losses, stop - start)
    return student.split.whole(carry.part, rest), carry.losses


def _scalar(loss: Any) -> jax.Array:
    loss = jnp.asarray(loss)
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"`loss` must return a float scalar, got {loss.dtype} of shape {loss.shape}.")
    return loss


def _copied(x: Any) -> jax.Array:
    return jnp.array(x, jnp.asarray(x).dtype)


def _like(before: Carry, after: Carry) -> Carry:
    """The same values in the dtypes of before: a loop keeps them."""
    return jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), before, after)
