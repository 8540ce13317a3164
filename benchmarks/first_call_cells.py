"""What one cell of `first_call.py`'s table runs, in a process of its own.

    python benchmarks/first_call_cells.py ROW COLUMN LIMIT

prints the cost as JSON. The process ends with the signal SIGXCPU after LIMIT CPU seconds of the call.
"""

from __future__ import annotations

import functools
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from first_call_shapes import NETWORKS, SHAPES, abstract, random_weights
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.allocation import Scope
from jaxprune.structures import Structure

STEPS, ROUNDS, BATCH = 100, 3, 8


class Cost(NamedTuple):
    """first: CPU seconds of the first call; parts: of tracing, lowering and compiling, where they are apart;
    second: CPU seconds of the second call, where there is one."""

    first: float
    parts: tuple[float, ...] = ()
    second: float | None = None


class Trained(TrainState):
    batch_stats: Any


def called(fn: Callable[[], Any]) -> Cost:
    """The cost of an eager call, and of the same again."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        jax.block_until_ready(fn())
        seconds.append(time.process_time() - start)
    return Cost(seconds[0], second=seconds[1])


def compiled(fn: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Cost:
    """The cost of tracing, lowering and compiling a function for abstract arguments."""
    times = [time.process_time()]
    traced = jax.jit(fn, donate_argnums=donate).trace(*args)
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    lowered.compile()
    times.append(time.process_time())
    return Cost(times[-1] - times[0], tuple(np.diff(times).tolist()))


def scores_row(column: str) -> Callable[[], Cost]:
    params = random_weights(SHAPES[column]())
    return lambda: called(lambda: jp.scores.magnitude(params))


def masks_row(column: str, structure: Structure, scope: Scope) -> Callable[[], Cost]:
    params = random_weights(SHAPES[column]())
    scores = jax.block_until_ready(jp.scores.magnitude(params))
    where = None
    if isinstance(structure, jp.NM):  # the three colours that a first convolution reads are no multiple of 4
        where = jax.tree.map(lambda w: w.ndim > 1 and w.shape[-2] % structure.m == 0, params)
    sparsity = 0.5 if isinstance(structure, jp.NM) else 0.8
    return lambda: called(lambda: jp.make_masks(scores, sparsity, scope, structure, where))


def update_row(column: str, way: str) -> Callable[[], Cost]:
    params = abstract(SHAPES[column]())
    adamw, key = optax.adamw(1e-3), jax.random.key(0)
    rng = np.random.default_rng(0)
    masks = jax.tree.map(lambda w: rng.random(w.shape) < 0.1 if w.ndim > 1 else True, params)
    make: dict[str, Callable[[], optax.GradientTransformation]] = {
        "dense": lambda: adamw,
        "masked": lambda: jp.masked(adamw, masks),
        "gradual": lambda: jp.gradual(adamw, jp.schedules.cubic(0.9, begin=0, end=1000, every=100)),
        "set": lambda: jp.sparse_training.set(adamw, 0.9, end=1000, key=key),
        "rigl": lambda: jp.sparse_training.rigl(adamw, 0.9, end=1000, key=key),
        "ac_dc": lambda: jp.sparse_training.ac_dc(adamw, 0.9, begin=100, end=1000, every=100),
    }
    tx = make[way]()
    # An init with masks given, whose tracing warms no cache of the selection.
    with_masks = {"set": jp.sparse_training.set, "rigl": jp.sparse_training.rigl}
    start = with_masks[way](adamw, masks=masks, end=1000, key=key) if way in with_masks else tx
    state = jax.eval_shape(start.init, params)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return lambda: compiled(step, params, state, params, donate=(0, 1))


def experiment(column: str, tx: optax.GradientTransformation) -> tuple[Any, Any, Any, Any]:
    """(train_step, batch_fn, key, abstract state) of a network on images at random."""
    model, shape = NETWORKS[column]
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.standard_normal((64, *shape), np.float32))
    labels = jax.device_put(rng.integers(0, 10, 64, dtype=np.int32))
    key = jax.random.key(0)

    def fresh(key: jax.Array) -> Trained:
        variables = dict(model.init(key, images[:1]))
        params = variables.pop("params")
        return Trained.create(apply_fn=None, params=params, tx=tx, batch_stats=variables)  # pyright: ignore[reportArgumentType]

    def train_step(state: Trained, batch: tuple[jax.Array, jax.Array]) -> tuple[Trained, Any]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, **state.batch_stats}
            logits, stats = model.apply(variables, batch[0], mutable=list(state.batch_stats))
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), stats

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=dict(stats)), {"loss": loss}

    def batch_fn(key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, len(labels))
        return images[drawn], labels[drawn]

    return train_step, batch_fn, key, jax.eval_shape(fresh, key)


def scan_row(column: str) -> Callable[[], Cost]:
    train_step, batch_fn, key, state = experiment(column, optax.adam(1e-3))

    def train(key: jax.Array, state: Any) -> Any:
        def step(state: Any, number: jax.Array) -> Any:
            return train_step(state, batch_fn(key, number))

        return jax.lax.scan(step, state, jnp.arange(STEPS * (ROUNDS + 1)))

    return lambda: compiled(train, key, state)


def imp_row(column: str, rewind: int, every: int | None) -> Callable[[], Cost]:
    train_step, batch_fn, key, state = experiment(column, jp.masked(optax.adam(1e-3)))
    evaluate = (lambda state: train_step(state, batch_fn(key, 0))[1]["loss"]) if every else None  # pyright: ignore[reportArgumentType]
    imp = jp.imp(
        train_step, batch_fn, steps=STEPS, rounds=ROUNDS, rewind=jp.Rewind(rewind), every=every, evaluate=evaluate
    )  # fmt: skip
    return lambda: compiled(imp.run, key, state)


SCOPES: tuple[Scope, ...] = ("global", "local")


def rows() -> dict[str, Callable[[str], Callable[[], Cost]]]:
    """Row -> column -> what to measure."""
    structures = (jp.Unstructured(), jp.NM(2, 4), jp.Channels())
    masks = {
        f"make_masks, {type(structure).__name__}, {scope}": functools.partial(
            masks_row, structure=structure, scope=scope
        )
        for structure in structures
        for scope in SCOPES
    }
    steps = {
        f"{way} step": lambda column, way=way: update_row(column, way)
        for way in ("dense", "masked", "gradual", "set", "rigl", "ac_dc")
    }
    loops = {
        "scan of dense steps": scan_row,
        "imp.run": lambda column: imp_row(column, 0, None),
        "imp.run, late rewind and curve": lambda column: imp_row(column, 10, 50),
    }
    return {"scores.magnitude": scores_row, **masks, **steps, **loops}


def main() -> None:
    row, column, limit = sys.argv[1:]
    measure = rows()[row](column)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(0.0))  # the backend starts
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + float(limit)) + 1, hard))
    print(json.dumps(measure()._asdict()))


if __name__ == "__main__":
    main()
