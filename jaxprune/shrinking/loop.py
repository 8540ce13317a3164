"""The loop over rounds: plan, shrink, restore, train, evaluate, save."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.idle_rounds import check_rounds_train
from jaxprune.jaxprs import as_abstract
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.progress import steps_bar
from jaxprune.rewind import Initialization, Reinitialize, drawn_like, replace
from jaxprune.scores._scorer import name_of
from jaxprune.shrinking.compacting import Compact, compact_by
from jaxprune.shrinking.folder import Folder, Progress
from jaxprune.shrinking.history import History, Row, history_of, values_of
from jaxprune.shrinking.planners import Stage
from jaxprune.shrinking.states import Variables, places_of, shrink_snapshot, shrink_state
from jaxprune.surgery import Plan, cost
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.model import analyse
from jaxprune.training import Training, round_keys

TrainStep = Callable[[Any, Any], tuple[Any, PyTree]]


class Shrunk(NamedTuple):
    """What `shrink_in_rounds` returns.

    state: the trained state of the last round; plan: what all rounds removed, for the full parameters, so that
    `plan.compact(fn)` is the small function; history: the rounds.
    """

    state: Any
    plan: Any
    history: History


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """The arguments that are the same in all rounds."""

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
        _check_known(state, self.key)
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
        with steps_bar("rounds", sum(ends[len(rounds.rows) :]), progress) as advance:
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
                    state = size.training.match_dtypes(self.key, rounds.state)
                    rounds = rounds._replace(state=state)
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
        check = getattr(self.planner, "check", None)
        if callable(check):
            full = jax.tree.map(as_abstract, state)
            check(self.stage(None, state, full, shares[-1], len(shares)))
        chosen = list(range(len(jax.tree.leaves(state.params))))
        check_rounds_train(training, self.key, state, chosen, self.rewind, ends)

    def settings(self, state: Any, shares: list[float], ends: list[int]) -> dict[str, Any]:
        """What must be the same in a run that is resumed."""
        key = self.key
        data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
        paths, leaves, _ = flatten_with_paths(state)
        schedule = getattr(self.rewind, "schedule", "")
        return {
            "format": "jaxprune rounds 1",
            "sparsities": shares,
            "steps": ends,
            "planner": name_of(self.planner),
            "rewind": f"{type(self.rewind).__name__}({schedule or self.rewind.step})",
            "key": np.asarray(data).tolist(),
            "shapes": {path: list(leaf.shape) for path, leaf in zip(paths, leaves, strict=True)},
        }

    def stage(self, plan: Any, state: Any, full: Any, sparsity: float, number: int) -> Stage:
        score_key, compact = round_keys(self.key, number).scores, compact_by(plan)
        params, full_params = self.variables(state), self.variables(full)
        return Stage(
            compact(self.fn), params, self.inputs, sparsity, number, score_key, self.fn, full_params, compact
        )

    def planned(self, rounds: Progress, full: Any, sparsity: float, number: int) -> Any:
        """The plan of a round; None if it removes nothing."""
        plan = self.planner(self.stage(rounds.plan, rounds.state, full, sparsity, number))
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
        key = round_keys(self.key, number).weights
        rewind = self.rewind
        if isinstance(rewind, Reinitialize) and rounds.plan:
            init_fn = rewind.init_fn

            def small_init(key: jax.Array) -> PyTree:
                drawn = replace(full, params=drawn_like(full.params, init_fn(key)), opt_state=())
                return shrink_state(rounds.plan, drawn, self.variables).params

            rewind = Reinitialize(small_init)
        return rounds._replace(state=rewind.restore(key, rounds.state, rounds.snapshot))

    def trained(
        self, size: _Size, rounds: Progress, number: int, end: int, advance: Callable[[Any], None]
    ) -> tuple[Progress, PyTree]:
        """The training of a round, and the metrics of its last step."""
        key = round_keys(self.key, number).batches
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
        evaluation = (
            {} if self.evaluate is None else values_of(self.evaluate(jax.jit(size.fn), params), "`evaluate`")
        )
        flops = cost.flops(analyse(size.fn, params, self.inputs).frame, Keep())
        return Row(
            shares[number - 1] if number else 0.0,
            sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            int(flops),
            ends[number] - (self.rewind.step if number else 0),
            values_of(metrics, "`train_step`"),
            evaluation,
        )


class _Size(NamedTuple):
    """The training and the function at one size."""

    training: Training
    fn: Callable


def _check_known(state: Any, key: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((state, key))):
        raise ValueError(
            "`state` and `key` must be known: shapes change from round to round, so shrink_in_rounds is not for jit, "
            "vmap or scan. Call it outside of them; it compiles the training step of each size itself."
        )


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
