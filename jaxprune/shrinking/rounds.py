"""Recursive removal: train, plan, shrink parameters and optimizer state, train on."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxprune.allocation import check_fraction, pruned_after
from jaxprune.idle_rounds import idle_round
from jaxprune.jaxprs import as_abstract
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.progress import progress_bar
from jaxprune.rewind import Finetune, Initialization, Reinitialize, replace
from jaxprune.shrinking.compacting import Compact, compact_by
from jaxprune.shrinking.folder import Folder, Progress
from jaxprune.shrinking.history import History, Row, history_of, values_of
from jaxprune.shrinking.planners import RemoveUnits, Stage
from jaxprune.shrinking.states import Variables, places_of, shrink_snapshot, shrink_state
from jaxprune.surgery import Plan
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.model import analyse
from jaxprune.surgery.planning import cost
from jaxprune.training import Training
from jaxprune.whole_numbers import check_whole

TrainStep = Callable[[Any, Any], tuple[Any, PyTree]]


class Shrunk(NamedTuple):
    """What `shrink_in_rounds` returns.

    state: the trained state of the last round; plan: what all rounds removed, for the full parameters, so that
    `plan.compact(fn)` is the small function; history: the rounds.
    """

    state: Any
    plan: Any
    history: History


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
    sparsities: Sequence[float] | None = None,
    planner: Callable[[Stage], Any] = RemoveUnits(),
    rewind: Initialization = Finetune(),
    evaluate: Callable[[Callable, PyTree], PyTree] | None = None,
    variables: Variables | None = None,
    folder: Any = None,
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
      rate: fraction of what is left that a round removes, in (0, 1).
      sparsities: in place of `rounds` and `rate`: the fraction of the original size that is removed after each round,
        rising, such as `[0.3, 0.5, 0.6]`.
      planner: what a round removes: `jp.RemoveUnits(...)`, `jp.RemoveLayers(...)`, or a function that makes a plan
        of a `Stage` (`stage.fn`, `stage.params`, `stage.inputs`, `stage.share`, ...): a `Plan`, a `LayerPlan`, or
        one of each by `then`.
      rewind: from which values training continues after a removal: `Finetune()`, `Rewind(step)`,
        `RewindLearningRate(step)` or `Reinitialize(init_fn)`, as for `jp.imp`. Values to rewind to are shrunk too.
      evaluate: (fn, params) -> metrics, at the end of each round, with the compiled small function.
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
    shares = _sparsities(rounds, rate, sparsities)
    ends = _steps(steps, len(shares) + 1, rewind)
    loop = _Loop(fn, inputs, key, make_train_step, batch_fn, planner, rewind, evaluate, variables or _params)
    return loop.run(state, shares, ends, folder, progress)


@dataclasses.dataclass(frozen=True, eq=False)
class _Loop:
    """The arguments that do not change."""

    fn: Callable
    inputs: tuple[Any, ...]
    key: jax.Array
    make_train_step: Callable[[Compact], TrainStep]
    batch_fn: Callable[[jax.Array, jax.Array], Any]
    planner: Callable[[Stage], Any]
    rewind: Initialization
    evaluate: Callable[[Callable, PyTree], PyTree] | None
    variables: Variables

    def run(self, state: Any, shares: list[float], ends: list[int], folder: Any, progress: bool) -> Shrunk:
        training = self.training(None)
        state = training.match_dtypes(self.key, state)
        places_of(state, self.variables)
        self.check(training, state, shares, ends)
        full = jax.tree.map(as_abstract, state)
        rounds = Progress(state, self.rewind.take(state), None, ())
        kept = None
        if folder is not None:
            kept = Folder(folder, self.settings(state, shares, ends))
            rounds = kept.load(rounds, self.shrunk, self.variables)
        # The training at the present size, compiled when it is first used.
        size = None if rounds.plan else _Size(training, self.fn)
        with _bar(progress, ends[len(rounds.rows) :]) as advance:
            for number in range(len(rounds.rows), len(ends)):
                plan = None
                if number:
                    plan = self.planned(rounds, full, shares[number - 1], number)
                    if plan is None and self.is_stuck(rounds, full, shares, number):
                        _warn_of_end(number, shares)
                        break
                    if plan is not None:
                        rounds, size = self.shrunk(rounds, plan), None
                    rounds = self.restored(rounds, full, number)
                if size is None:
                    size = _Size(self.training(rounds.plan), compact_by(rounds.plan)(self.fn))
                    size.training.match_dtypes(self.key, rounds.state)
                rounds, metrics = self.trained(size, rounds, number, ends[number], advance)
                row = self.row(size, rounds.state, number, shares, ends, metrics)
                rounds = rounds._replace(rows=(*rounds.rows, row))
                if kept is not None:
                    kept.save(rounds, plan)
        nothing = _plan_of_nothing(self.variables(full))
        return Shrunk(rounds.state, rounds.plan or nothing, history_of(rounds.rows))

    def training(self, plan: Any) -> Training:
        train_step = self.make_train_step(compact_by(plan))
        if not callable(train_step):
            raise TypeError(
                f"`make_train_step` must return a function (state, batch) -> (state, metrics), got {train_step!r}. "
                "It is called with `compact`, which gives a function at the present size."
            )
        return Training(train_step, self.batch_fn, 0, None, None)  # the steps are counted here

    def check(self, training: Training, state: Any, shares: list[float], ends: list[int]) -> None:
        """Raises what can be known before the first training."""
        if isinstance(self.planner, RemoveUnits):
            full = jax.tree.map(as_abstract, state)
            self.planner.check(self.stage(self.fn, state, full, shares[-1], len(shares)))
        chosen = list(range(len(jax.tree.leaves(state.params))))
        idle = idle_round(training, self.key, state, chosen, self.rewind, len(shares), ends)
        if idle is not None:
            raise ValueError(
                f"`rewind` {self.rewind!r} leaves round {idle} nothing to train: at its step counts every update is "
                "0, as after the end of a learning-rate schedule. Let the schedule end above 0 or cover all rounds "
                f"({sum(ends)} steps) with Finetune(), or restart it in every round with "
                "Finetune(schedule='restart')."
            )

    def settings(self, state: Any, shares: list[float], ends: list[int]) -> dict[str, Any]:
        """What must be the same in a run that is resumed."""
        key = self.key
        data = jax.random.key_data(key) if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else key
        paths, leaves, _ = flatten_with_paths(state)
        schedule = getattr(self.rewind, "schedule", "")
        return {
            "format": "jaxprune rounds 1",
            "sparsities": shares,
            "steps": ends,
            "rewind": f"{type(self.rewind).__name__}({schedule or self.rewind.step})",
            "key": np.asarray(data).tolist(),
            "shapes": {path: list(leaf.shape) for path, leaf in zip(paths, leaves, strict=True)},
        }

    def stage(self, fn: Callable, state: Any, full: Any, sparsity: float, number: int) -> Stage:
        score_key = jax.random.split(jax.random.fold_in(self.key, number), 3)[1]
        params, full_params = self.variables(state), self.variables(full)
        return Stage(fn, params, self.inputs, sparsity, number, score_key, self.fn, full_params)

    def planned(self, rounds: Progress, full: Any, sparsity: float, number: int) -> Any:
        """The plan of a round; None if it removes nothing."""
        fn = compact_by(rounds.plan)(self.fn)
        plan = self.planner(self.stage(fn, rounds.state, full, sparsity, number))
        if not hasattr(plan, "small_shapes"):
            raise TypeError(
                f"`planner` must return a plan, as jp.plan_removal and jp.plan_layers do, got {plan!r}."
            )
        return None if dict(plan.small_shapes) == dict(plan.shapes) else plan

    def is_stuck(self, rounds: Progress, full: Any, shares: list[float], number: int) -> bool:
        """Whether the planner, which removes nothing in this round, would not at a much higher sparsity either."""
        try:
            return self.planned(rounds, full, (1 + shares[-1]) / 2, number) is None
        except ValueError:  # it can't remove so much
            return False

    def shrunk(self, rounds: Progress, plan: Any) -> Progress:
        snapshot = shrink_snapshot(plan, rounds.snapshot, rounds.state, self.variables)
        state = shrink_state(plan, rounds.state, self.variables)
        return Progress(state, snapshot, rounds.plan.then(plan) if rounds.plan else plan, rounds.rows)

    def restored(self, rounds: Progress, full: Any, number: int) -> Progress:
        """The state from which the training of a round continues."""
        key = jax.random.split(jax.random.fold_in(self.key, number), 3)[2]
        rewind = self.rewind
        if isinstance(rewind, Reinitialize) and rounds.plan:
            init_fn = rewind.init_fn

            def small_init(key: jax.Array) -> PyTree:
                drawn = replace(full, params=_like(full.params, init_fn(key)), opt_state=())
                return shrink_state(rounds.plan, drawn, self.variables).params

            rewind = Reinitialize(small_init)
        return rounds._replace(state=rewind.restore(key, rounds.state, rounds.snapshot))

    def trained(
        self, size: _Size, rounds: Progress, number: int, end: int, advance: Callable[[Any], None]
    ) -> tuple[Progress, PyTree]:
        """The training of a round, and the metrics of its last step."""
        key = jax.random.split(jax.random.fold_in(self.key, number), 3)[0]
        state, metrics, snapshot = rounds.state, (), rounds.snapshot
        for step in range(self.rewind.step if number else 0, end):
            if not number and step == self.rewind.step:
                snapshot = self.rewind.take(state)
            state, metrics = size.training.step(state, key, jnp.int32(step))
            advance(metrics)
        return rounds._replace(state=jax.block_until_ready(state), snapshot=snapshot), metrics

    def row(
        self, size: _Size, state: Any, number: int, shares: list[float], ends: list[int], metrics: PyTree
    ) -> Row:
        params = self.variables(state)
        evaluation = {} if self.evaluate is None else values_of(self.evaluate(jax.jit(size.fn), params))
        flops = cost.flops(analyse(size.fn, params, self.inputs).frame, Keep())
        return Row(
            shares[number - 1] if number else 0.0,
            sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            int(flops),
            ends[number] - (self.rewind.step if number else 0),
            values_of(metrics),
            evaluation,
        )


class _Size(NamedTuple):
    """The training and the function at one size."""

    training: Training
    fn: Callable


def _params(state: Any) -> PyTree:
    return state.params


def _like(params: PyTree, drawn: PyTree) -> PyTree:
    """New values in the tree of the parameters, whose paths and shapes they must have."""
    paths, leaves, treedef = flatten_with_paths(params)
    new = dict(zip(*flatten_with_paths(drawn)[:2], strict=True))
    for path, leaf in zip(paths, leaves, strict=True):
        if path not in new or np.shape(new[path]) != leaf.shape:
            raise ValueError(
                f"`init_fn` must return the full parameters, of shape {leaf.shape} at {path!r}, got "
                f"{np.shape(new[path]) if path in new else 'nothing'} there."
            )
    return jax.tree.unflatten(treedef, [jnp.asarray(new[path]) for path in paths])


def _plan_of_nothing(params: PyTree) -> Plan:
    paths, leaves, _ = flatten_with_paths(params)
    shapes = {path: tuple(leaf.shape) for path, leaf in zip(paths, leaves, strict=True)}
    return Plan(shapes, {path: (None,) * len(shape) for path, shape in shapes.items()})


def _warn_of_end(number: int, shares: list[float]) -> None:
    warnings.warn(
        f"the planner removes nothing in round {number}, at sparsity {shares[number - 1]:g}, nor at a higher one: "
        f"what is left can't be removed (as by its `minimum`). Stopped after round {number - 1} of {len(shares)}.",
        stacklevel=4,
    )


def _sparsities(rounds: Any, rate: Any, sparsities: Any) -> list[float]:
    """The sparsity after each round."""
    if (sparsities is None) == (rate is None and rounds is None):
        raise ValueError("pass either `rounds` and `rate`, or `sparsities`, one for each round.")
    if sparsities is None:
        if rate is None or rounds is None:
            raise ValueError(f"pass both `rounds` and `rate`, got rounds={rounds!r}, rate={rate!r}.")
        check_whole(rounds=rounds)
        check_fraction("rate", rate)
        if not rate > 0:
            raise ValueError(f"`rate` must be in (0, 1), got {rate!r}: a round would remove nothing.")
        return [pruned_after(float(rate), r) for r in range(1, rounds + 1)]
    found = []
    for share in sparsities:
        check_fraction("sparsities", share)
        if not share > (found[-1] if found else 0):
            raise ValueError(
                f"`sparsities` must rise from above 0, as each is the fraction removed in all, got {list(sparsities)}."
            )
        found.append(float(share))
    if not found:
        raise ValueError("`sparsities` must hold one for each round, got none.")
    return found


def _steps(steps: Any, trainings: int, rewind: Any) -> list[int]:
    """The number of steps of each training."""
    if not callable(getattr(rewind, "restore", None)):
        raise TypeError(f"`rewind` must be Finetune(), Rewind(step), ..., got {rewind!r}.")
    if isinstance(steps, int | np.integer | float | str) or steps is None:
        check_whole(steps=steps)
        ends = [int(steps)] * trainings
    else:
        ends = list(steps)
        if len(ends) != trainings:
            raise ValueError(
                f"`steps` must be one number, or one for each of the {trainings} trainings (round 0 is the dense one), "
                f"got {len(ends)}."
            )
        check_whole(at_least=0, steps=ends[0])
        for number in ends[1:]:
            check_whole(steps=number)
    if any(end <= rewind.step for end in (ends if rewind.step else ends[1:])):
        raise ValueError(
            f"`rewind` must go back to a step of every round, got {rewind!r} with steps={steps}: the last one is "
            f"{min(ends) - 1}."
        )
    return ends


@contextlib.contextmanager
def _bar(shown: bool, ends: list[int]) -> Iterator[Callable[[Any], None]]:
    """A function to call after each step with its metrics, which advances a progress bar."""
    if not shown:
        yield lambda metrics: None
        return
    last = time.monotonic()
    waiting = 0
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("shrinking", total=sum(ends), note="")

        def advance(metrics: Any) -> None:
            nonlocal last, waiting
            waiting += 1
            if time.monotonic() - last > 0.2:
                jax.block_until_ready(metrics)  # steps are run after they were asked for
                bar.advance(task, waiting)
                last, waiting = time.monotonic(), 0

        yield advance
        bar.advance(task, waiting)
