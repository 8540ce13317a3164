"""Recursive removal: train, plan, shrink parameters and optimizer state, train on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxprune.params import PyTree
from jaxprune.rewind import Finetune, Initialization
from jaxprune.round_sparsity import Sparsities
from jaxprune.round_steps import check_rewind, lengths_of
from jaxprune.shrinking.arguments import check_functions, sparsities_of
from jaxprune.shrinking.compacting import Compact
from jaxprune.shrinking.loop import Loop, Shrunk, TrainStep
from jaxprune.shrinking.planners import RemoveUnits, Stage
from jaxprune.shrinking.states import Variables


def shrink_in_rounds(
    fn: Callable,
    state: Any,
    *inputs: Any,
    key: jax.Array,
    make_train_step: Callable[[Compact], TrainStep],
    batch_fn: Callable[[jax.Array, jax.Array], Any],
    steps: int | Sequence[int],
    rounds: int | None = None,
    rate: float | None = None,
    sparsities: Sparsities | None = None,
    planner: Callable[[Stage], Any] = RemoveUnits(),
    rewind: Initialization = Finetune(),
    evaluate: Callable[[Callable, PyTree], PyTree] | None = None,
    variables: Variables | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Shrunk:
    """Removes units or layers in rounds: train, plan, shrink the whole state, train on at the smaller size.

    Round 0 trains the dense network. Each later round scores what is left, removes more of it physically
    (parameters, moments of the optimizer, statistics) and trains on, as `jp.imp` does with masks. After round r
    the fraction `1 - (1 - rate)^r` of the original size is removed. The loop runs on the host, and each size is
    compiled once.

    Args:
      fn: function `fn(params, *inputs)` whose inputs and outputs keep their sizes: the model, for inference.
      state: pytree with `.params` and `.opt_state`, such as flax's TrainState or a NamedTuple. Arrays in trees like
        the parameters, such as moments and moving averages, are shrunk with them.
      *inputs: example inputs of `fn`.
      key: a `jax.random.key`; all batches follow from it.
      make_train_step: compact -> train_step, where `train_step(state, batch) -> (state, metrics)`. It is called
        once for each size. `compact(f)` is the function `f(params, *inputs)` at this size, for the model, a
        training form of it or a loss. New values of parameters among the outputs of `f` (BatchNorm statistics)
        are recognized by their paths; pass `compact(f, state=...)`, as in `find_groups`, where they have others.
      batch_fn: (key, step) -> batch, as for `jp.imp`: pure; fold `step` into the key.
      steps: number of training steps of a round, counted from step 0; or one number for each of the `rounds + 1`
        trainings, the first of which may be 0 for a state that is trained already.
      rounds: number of removals; with the dense round 0 there are `rounds + 1` trainings.
      rate: fraction of what is left that a round removes, in (0, 1); 0.2 if it is left out.
      sparsities: in place of `rate`, as for `jp.imp`: the fraction of the original size that is removed after each
        round, such as `[0.3, 0.5, 0.6]`, or a schedule of the number of `rounds`.
      planner: what a round removes: `jp.RemoveUnits(...)`, `jp.RemoveLayers(...)`, or a function that makes a plan
        of a `Stage` (`stage.fn`, `stage.params`, `stage.inputs`, `stage.share`, ...): a `Plan`, a `LayerPlan`, or
        one of each by `then`.
      rewind: from which values training continues after a removal: `Finetune()`, `Rewind(step)`,
        `RewindLearningRate(step)` or `Reinitialize(init_fn)`, as for `jp.imp`. Values to rewind to are shrunk too.
      evaluate: (fn, params) -> numbers, at the end of each round; `fn` is the jitted function at that size, `params`
        are `variables(state)`.
      variables: state -> the `params` of `fn`, where these are not `state.params`. It only picks and arranges, such
        as `lambda state: {"params": state.params, "batch_stats": state.batch_stats}`.
      folder: where to keep finished rounds (needs Orbax). A run with the folder of a run that was stopped, and with
        the same arguments, continues after its last finished round, with the same result bit for bit.
      progress: shows a progress bar.

    Returns:
      (state, plan, history): the state after the last training, the plan of all rounds for the full parameters, and
      a `History` that prints as a table. `plan.compact(fn)` is the small function of `variables(state)`.

    Raises:
      ValueError: if an argument is out of range; if so much can't be removed (for `RemoveUnits` before any training);
        if a later round would train nothing, because the learning rate has run out; if the folder is that of
        another run.
      TypeError: if `make_train_step` returns no function, or the state lacks `.params` or `.opt_state`.

    Warns:
      UserWarning: if the planner can remove nothing more any more: the loop then stops.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> from flax.training.train_state import TrainState
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> def make_train_step(compact):
      ...     small = compact(mlp)
      ...     def train_step(state, x):
      ...         loss, grads = jax.value_and_grad(lambda p: jnp.mean((small(p, x) - x) ** 2))(state.params)
      ...         return state.apply_gradients(grads=grads), {"loss": loss}
      ...     return train_step
      >>> def batch_fn(key, step):
      ...     return jax.random.normal(jax.random.fold_in(key, step), (8, 4))
      >>> params = {"up": jnp.linspace(-1, 1, 40).reshape(4, 10), "down": jnp.ones((10, 4))}
      >>> state = TrainState.create(apply_fn=None, params=params, tx=optax.adam(0.01))
      >>> state, plan, history = jp.shrink_in_rounds(mlp, state, jnp.ones((1, 4)), key=jax.random.key(0),
      ...     make_train_step=make_train_step, batch_fn=batch_fn, steps=5, rounds=3, rate=0.2)
      >>> state.params["up"].shape, plan.compact(mlp)(state.params, jnp.ones((1, 4))).shape
      ((4, 5), (1, 4))
      >>> history.parameters.tolist()
      [80, 64, 48, 40]

    References:
      Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2016,
      arXiv:1611.06440. Renda, Frankle, Carbin, Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020,
      arXiv:2003.02389.
    """
    check_functions(fn=fn, make_train_step=make_train_step, batch_fn=batch_fn, planner=planner)
    check_functions(evaluate=evaluate or fn, variables=variables or fn)
    shares = sparsities_of(rounds, rate, sparsities)
    ends = lengths_of(steps, len(shares) + 1, first_at_least=0)
    check_rewind(rewind, ends)
    loop = Loop(fn, inputs, key, make_train_step, batch_fn, planner, rewind, evaluate, variables or _params)
    return loop.run(state, shares, list(ends), folder, progress)


def _params(state: Any) -> PyTree:
    return state.params
