"""An NNX model as the state and the pure functions that experiments take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxprune.params import PyTree
from jaxprune.train_state import TrainState


class NNXTraining(NamedTuple):
    """What `nnx_state` makes: `state`, and the pure functions `train_step`, `evaluate` and `fn` of it.

    state: the state to start from; its `params` are what the optimizer trains (an `nnx.State`), its `rest` is all other
    variables, such as batch statistics and the counts of random streams; train_step: (state, batch) -> (state,
    metrics); evaluate: state -> metrics, or None; fn: (params, *inputs) -> outputs of the model in eval mode, for
    surgery and scores; update: state -> None, which writes the values of a state into the model.
    """

    state: TrainState
    train_step: Callable[[Any, Any], tuple[Any, PyTree]]
    evaluate: Callable[[Any], PyTree] | None
    fn: Callable[..., Any]
    update: Callable[[Any], None]


def nnx_state(
    model: nnx.Module,
    optimizer: Any,
    loss_fn: Callable[[Any, Any], Any],
    evaluate: Callable[[Any], PyTree] | None = None,
) -> NNXTraining:
    """Makes of an NNX model and its optimizer the state and functions that `jp.imp` and recipes take.

    The model is split once. `train_step` computes loss and gradients of the model in train mode, updates parameters
    and optimizer, and carries everything else that the model changes: batch statistics, the counts of dropout's
    random streams. What the model sows is dropped. The optimizer is also told the loss, for those that ask for
    `value`, `grad` and `value_fn`. `evaluate` sees the model in eval mode. All are pure: they run under `jit`, `scan`
    and `vmap`.

    Args:
      model: the NNX module. It is left as it is.
      optimizer: an optax optimizer, which trains the `nnx.Param`s; or an `nnx.Optimizer` of the model, whose state,
        step and `wrt` are taken over. Plain or in `jp.masked`.
      loss_fn: (model, batch) -> loss, or (loss, metrics).
      evaluate: model -> metrics.

    Returns:
      A `NNXTraining`.

    Raises:
      TypeError: what is no NNX module, or no optimizer.
      ValueError: a model without parameters to train; the optimizer of another model.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> from flax import nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.up, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
      ...         self.down = nnx.Linear(8, 2, rngs=rngs)
      ...     def __call__(self, x):
      ...         return self.down(nnx.relu(self.norm(self.up(x))))
      >>> def batch_fn(key, step):
      ...     return jax.random.normal(jax.random.fold_in(key, step), (16, 4))
      >>> def loss_fn(model, x):
      ...     return jnp.mean((model(x) - x[:, :2]) ** 2)
      >>> training = jp.nnx_state(Net(nnx.Rngs(0)), optax.adam(0.01), loss_fn)
      >>> experiment = jp.recipes.imp(0.75, rounds=2).experiment(training.train_step, batch_fn, steps=9)
      >>> state, history = jax.jit(experiment.run)(jax.random.key(0), training.state)
      >>> history.kept
      Array([48, 24, 12], dtype=int32)
      >>> training.update(state)  # the model now holds the sparse weights and its batch statistics
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"`model` must be an nnx.Module, got {type(model).__name__}.")
    trained = optimizer.wrt if isinstance(optimizer, nnx.Optimizer) else nnx.Param
    graph, params, rest = _split(nnx.clone(model), trained)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"`model` must have parameters to train ({_name(trained)}), got none in {type(model).__name__}."
        )
    tx, opt_state, step = _optimizer(optimizer, params)
    params, opt_state, rest = jax.tree.map(jnp.array, (params, opt_state, rest))
    state = TrainState(params, opt_state, rest, jnp.asarray(step, jnp.int32), tx)

    def loss(params: Any, rest: Any, batch: Any) -> tuple[Any, tuple[Any, Any]]:
        whole = nnx.merge(graph, params, rest, copy=True)
        whole.train()
        result = loss_fn(whole, batch)
        value, metrics = result if isinstance(result, tuple) else (result, {})
        return value, (_split(whole, trained)[2], metrics)

    def train_step(state: Any, batch: Any) -> tuple[Any, PyTree]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, (rest, metrics)), grads = gradient(state.params, state.rest, batch)
        told = {"value": value, "grad": grads, "value_fn": lambda params: loss(params, state.rest, batch)[0]}
        optimizer = optax.with_extra_args_support(state.tx)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **told)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, **metrics} if isinstance(metrics, dict) else (value, metrics)
        return state.replace(params=params, opt_state=opt_state, rest=rest, step=state.step + 1), metrics

    def eval_model(params: Any, rest: Any) -> Any:
        whole = nnx.merge(graph, params, rest, copy=True)
        whole.eval()
        return whole

    def fn(params: Any, *inputs: Any) -> Any:
        return eval_model(params, rest)(*inputs)

    def measure(state: Any) -> PyTree:
        assert evaluate is not None
        return evaluate(eval_model(state.params, state.rest))

    def update(state: Any) -> None:
        nnx.update(model, state.params, state.rest)

    return NNXTraining(state, train_step, None if evaluate is None else measure, fn, update)


def _split(model: nnx.Module, trained: Any) -> tuple[Any, Any, Any]:
    """The graph, what is trained and all else of a model, which loses what it has sown."""
    nnx.pop(model, nnx.Intermediate)
    return nnx.split(model, trained, ...)


def _optimizer(optimizer: Any, params: Any) -> tuple[Any, Any, Any]:
    """The optax optimizer, its state for these parameters, and the number of its steps."""
    if not isinstance(optimizer, nnx.Optimizer):
        if not callable(getattr(optimizer, "update", None)) or not callable(getattr(optimizer, "init", None)):
            raise TypeError(f"`optimizer` must be an optax optimizer or an nnx.Optimizer, got {optimizer!r}.")
        return optimizer, optimizer.init(params), 0
    own = jax.eval_shape(optimizer.tx.init, params)
    leaves = jax.tree.leaves(optimizer.opt_state)
    if [x.shape for x in jax.tree.leaves(own)] != [x.shape for x in leaves]:
        raise ValueError(
            "`optimizer` must be one of `model`: its state has not the shapes of the parameters."
        )
    return optimizer.tx, jax.tree.unflatten(jax.tree.structure(own), leaves), optimizer.step[...]


def _name(trained: Any) -> str:
    return f"nnx.{trained.__name__}" if isinstance(trained, type) else repr(trained)
