"""Planners: what a round removes. A planner is a function of a `Stage` that returns a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Literal

import jax

from jaxprune.params import PyTree
from jaxprune.scores._scorer import name_of
from jaxprune.selection import as_written
from jaxprune.shrinking.compacting import Compact, compact_by
from jaxprune.surgery import LayerPlan, Plan, cost, find_branches, find_groups, plan_layers, plan_removal
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.model import analyse
from jaxprune.surgery.planning.alike import Alike, checked_alike
from jaxprune.surgery.planning.budget import Budget, count
from jaxprune.surgery.planning.removal import excluded


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """What a planner knows when a round begins.

    Attributes:
      fn: the function at the present size.
      params: its parameters, as trained so far.
      inputs: the example inputs.
      sparsity: the fraction of the original size to be removed in all by the end of this round.
      round: number of the round, from 1.
      key: a key of this round, for random scores.
      full_fn: the function at its original size.
      full_params: its parameters, abstract.
      compact: gives any function of the parameters at the present size, as for `make_train_step`.
    """

    fn: Callable = dataclasses.field(repr=False)
    params: PyTree = dataclasses.field(repr=False)
    inputs: tuple[Any, ...] = dataclasses.field(repr=False)
    sparsity: float
    round: int
    key: jax.Array = dataclasses.field(repr=False)
    full_fn: Callable = dataclasses.field(repr=False)
    full_params: PyTree = dataclasses.field(repr=False)
    compact: Compact = dataclasses.field(repr=False, default=compact_by(None))

    @property
    def share(self) -> float:
        """The fraction of the present parameters to remove, so that `sparsity` of the original ones are gone."""
        whole, now = (sum(x.size for x in jax.tree.leaves(p)) for p in (self.full_params, self.params))
        return share_left(self.sparsity, whole, now)


def share_left(sparsity: float, whole: int, now: int) -> float:
    """The fraction of `now` to remove so that `sparsity` of `whole` is gone; 0 if more is gone already."""
    if not now:
        return 0.0
    left = 1 - (1 - as_written(sparsity)) * whole / Fraction(now)
    # Less than a part of one entry: what the fraction's float adds must not ask for one more unit.
    return max(float(left) - 1e-12, 0.0)


@dataclasses.dataclass(frozen=True, repr=False)
class RemoveUnits:
    """Removes units by `jp.plan_removal`, of the groups that `jp.find_groups` finds at the present size.

    With budget="units" and scope="local" each group of n units has lost exactly `round(sparsity * n)` of them after
    a round, n counted at the original size. The other budgets and scopes count all groups together, as
    `plan_removal` does.

    It is a planner of `jp.shrink_in_rounds`, and a structure of `jp.Recipe`. There the recipe's scoring says `score`,
    `scope`, `minimum` and `normalize`.

    Args:
      score: (groups, params) -> scores: one of `jp.surgery.l2_scores` (default) and its siblings, or a function
        that calls one. `groups.fn` is the function at the present size.
      scope, round_to, minimum, budget, normalize, exclude, only, alike: as for `plan_removal`.

    Example:
      >>> import jaxprune as jp
      >>> jp.RemoveUnits(score=jp.surgery.fpgm_scores, scope="global", budget="flops")
      RemoveUnits(budget='flops', score=fpgm_scores, scope='global')
    """

    score: Callable[[Groups, PyTree], Any] | None = None
    scope: Literal["local", "global"] = "local"
    round_to: int = 1
    minimum: int = 1
    budget: Literal["params", "flops", "units"] = "params"
    normalize: Literal["mean", "max"] | None = "mean"
    exclude: str | Iterable[str] = ()
    only: str | Iterable[str] | None = None
    alike: Alike = ()

    def __post_init__(self):
        object.__setattr__(self, "exclude", _listed(self.exclude))
        object.__setattr__(self, "only", None if self.only is None else _listed(self.only))
        object.__setattr__(self, "alike", checked_alike(self.alike))

    def __repr__(self) -> str:
        return _text(self)

    def check(self, stage: Stage) -> None:
        """Raises a ValueError if so much can't be removed at the original size, whatever the scores."""
        groups = find_groups(stage.fn, stage.params, *stage.inputs)
        self._plan(groups, stage, stage.sparsity, None)

    def __call__(self, stage: Stage) -> Plan:
        now = find_groups(stage.fn, stage.params, *stage.inputs)
        full = find_groups(stage.full_fn, stage.full_params, *stage.inputs)
        if self.budget != "units" or self.scope != "local":
            whole, left = (Budget(groups, self.budget).whole for groups in (full, now))
            share = share_left(stage.sparsity, whole, left)
            return self._plan(now, stage, share, self._scored(now, stage, share > 0))
        without = set(excluded(now, self.exclude, self.only))
        overrides = {}
        for group in now:
            size = full[group.name].size if group.name in full else group.size
            wanted = count(float(stage.sparsity), size) - (size - group.size)
            if group.name not in without:
                overrides[group.name] = min(max(wanted, 0), group.size - 1) / group.size
        score = self._scored(now, stage, any(overrides.values()))
        return self._plan(now, stage, 0.0, score, overrides)

    def _scored(self, groups: Groups, stage: Stage, is_removed: bool) -> Any:
        """The scores; those of a round that removes nothing don't count, and are the default ones."""
        return self.score(groups, stage.params) if self.score is not None and is_removed else None

    def _plan(self, groups: Groups, stage: Stage, share: float, score: Any, overrides: Any = None) -> Plan:
        return plan_removal(
            groups,
            stage.params,
            share,
            self.scope,
            score,
            self.round_to,
            self.minimum,
            self.budget,
            self.normalize,
            overrides,
            self.exclude,
            self.only,
            self.alike,
        )


@dataclasses.dataclass(frozen=True, repr=False)
class RemoveLayers:
    """Removes whole layers by `jp.plan_layers`, of the branches that `jp.find_branches` finds at the present size.

    After a round at least `sparsity` of the budget is removed, counted at the original size; of the branches,
    exactly `round(sparsity * n)`.

    It is a planner of `jp.shrink_in_rounds`, and a structure of `jp.Recipe`. There the recipe's scoring says `score`.

    Args:
      score: (branches, params) -> scores: `jp.surgery.branch_norms` (default), or a function that calls one of its
        siblings, such as `lambda branches, params: jp.surgery.block_influence(branches, params, batches)`.
      budget, exclude, level: as for `plan_layers`.

    Example:
      >>> import jaxprune as jp
      >>> jp.RemoveLayers(budget="branches", level="blocks")
      RemoveLayers(budget='branches', level='blocks')
    """

    score: Callable[..., Any] | None = None
    budget: Literal["params", "flops", "branches"] = "params"
    exclude: str | Iterable[str] = ()
    level: Literal["parts", "blocks"] = "parts"

    def __post_init__(self):
        object.__setattr__(self, "exclude", _listed(self.exclude))

    def __repr__(self) -> str:
        return _text(self)

    def __call__(self, stage: Stage) -> LayerPlan:
        now = find_branches(stage.fn, stage.params, *stage.inputs)
        if self.budget == "branches":
            full = find_branches(stage.full_fn, stage.full_params, *stage.inputs)
            whole, left = (self._free(branches) for branches in (full, now))
            number = max(count(float(stage.sparsity), whole) - (whole - left), 0)
            score = self._scored(now, stage, number > 0)
            return plan_layers(
                now, stage.params, None, score, "params", self.exclude, number=number, level=self.level
            )
        share = stage.share
        if self.budget == "flops":
            whole = cost.flops(analyse(stage.full_fn, stage.full_params, stage.inputs).frame, Keep())
            share = share_left(stage.sparsity, whole, now.flops)
        score = self._scored(now, stage, share > 0)
        return plan_layers(now, stage.params, share, score, self.budget, self.exclude, level=self.level)

    def _scored(self, branches: Any, stage: Stage, is_removed: bool) -> Any:
        """The scores; those of a round that removes nothing don't count, and are the default ones."""
        return self.score(branches, stage.params) if self.score is not None and is_removed else None

    def _free(self, branches: Any) -> int:
        excluded = set(branches.named(self.exclude, "exclude"))
        return sum(branch.name not in excluded for branch in branches.at(self.level))


def _listed(names: str | Iterable[str]) -> str | tuple[str, ...]:
    """Names that can be read in every round and hashed."""
    return names if isinstance(names, str) else tuple(names)


def _text(planner: RemoveUnits | RemoveLayers) -> str:
    """The budget, and the other choices that are not the default."""
    parts = [f"budget={planner.budget!r}"]
    for field in dataclasses.fields(planner):
        value = getattr(planner, field.name)
        if field.name != "budget" and value != field.default:
            parts.append(f"{field.name}={name_of(value) if callable(value) else repr(value)}")
    return f"{type(planner).__name__}({', '.join(parts)})"
