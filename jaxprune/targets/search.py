"""The search for a plan: a table of measured networks, a path of widths for each depth, and a few corrections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from jaxprune.params import PyTree
from jaxprune.surgery import LayerPlan, find_groups, plan_layers
from jaxprune.surgery.layers import Branches, block_influence
from jaxprune.surgery.planning.budget import count
from jaxprune.surgery.scores import UnitScores
from jaxprune.surgery.unit_cost import unit_cost
from jaxprune.targets.costs import Cost
from jaxprune.targets.latency_model import Seconds, fit, latency_cost
from jaxprune.targets.measured import Measured, Measurement
from jaxprune.targets.networks import Network, Networks
from jaxprune.targets.path import cheapest_path, first_below, uniform_path
from jaxprune.targets.units import Choice, Units

_SHARES = (0.75, 0.5, 0.25)  # of their units that all groups keep, in the table
_DEPTHS = 5  # numbers of layers for which widths are planned
_CORRECTIONS = 6


class Stage(NamedTuple):
    """The model without some layers.

    Attributes:
      layers: the plan that left them out, None for the full model.
      fn, params: the model.
      units: its groups.
    """

    layers: LayerPlan | None
    fn: Callable
    params: PyTree
    units: Units


class Candidate(NamedTuple):
    """A small network: the stage that it begins with, and what its groups keep."""

    stage: Stage
    kept: tuple[int, ...]

    @property
    def name(self) -> str:
        """How it was made small."""
        sizes = self.stage.units.sizes
        of_free = sorted({(n, k) for n, k in zip(sizes, self.kept, strict=True) if n != k})
        widths = ", ".join(f"{k} of {n}" for n, k in of_free[:3])
        if len(of_free) > 3:
            widths += f", ... ({sum(self.kept)} of {sum(sizes)} units)"
        gone = len(self.stage.layers.removed) if self.stage.layers else 0
        layers = f"without {gone} layer{'s' * (gone > 1)}" if gone else ""
        return "; ".join(filter(None, (layers, widths))) or "dense"

    def made(self) -> tuple[Any, Network]:
        """Its plan, and its function and parameters."""
        layers, fn, params, units = self.stage
        width = units.plan(self.kept)
        if self.kept == units.sizes:
            return (width if layers is None else layers), (fn, params)
        plan = width if layers is None else layers.then(width)
        return plan, (width.compact(fn), width.shrink(params))


@dataclass(frozen=True)
class Search:
    """The search; the arguments are those of `plan_to`."""

    target: str
    share: float
    networks: Networks
    choice: Choice
    branches: Branches | None
    score: Any
    layer_score: Mapping[str, float] | None
    scope: str
    normalize: str | None
    tolerance: float

    def run(self) -> tuple[Any, Measured]:
        """The plan, and what was measured."""
        if not self.choice.free:
            return self._met([Candidate(stage, stage.units.sizes) for stage in self._depths()])
        stages = self._few(self._depths())
        paths = [self._path(stage) for stage in stages]
        if len(stages) == 1:
            return self._met(paths[0])
        ends = [self._first(path) for path in paths]
        reached = [i for i, (end, path) in enumerate(zip(ends, paths, strict=True)) if end < len(path)]
        if not reached:
            return self._met(min(paths, key=lambda path: self.cost(path[-1])))
        errors = {i: self._measured(paths[i][ends[i]]).error or 0.0 for i in reached}
        return self._met(paths[min(errors, key=errors.__getitem__)])

    # The cost

    @cached_property
    def full(self) -> Stage:
        """The full model."""
        fn, params = self.networks.dense
        return Stage(None, fn, params, self.choice.units(self.choice.groups, params, self.score))

    def cost(self, candidate: Candidate) -> float:
        """The share of the dense model's cost; of latencies, by the model."""
        return float(self._cost(candidate.stage.units).of(candidate.kept)) / self._whole

    @cached_property
    def _whole(self) -> float:
        return 1.0 if self.target == "latency" else float(self._cost(self.full.units).whole) or 1.0

    def _cost(self, units: Units) -> Cost:
        if self.target == "latency":
            return latency_cost(units.sizes, units.parts, self.seconds)
        found = unit_cost(units.groups, units.numbers, self.target)  # type: ignore[arg-type]
        return Cost(found.sizes, dict(zip(found.factors, found.coefficients, strict=True)))

    # What is measured before the search

    @cached_property
    def table(self) -> dict[tuple[int, ...], Measurement]:
        """Each kind of groups at half width; for latencies all of them at some shares too."""
        units = self.full.units
        kept: dict[tuple[int, ...], str] = {}
        for groups in self._kinds if self._is_weighted or self.target == "latency" else ():
            row = units.halved(groups)
            names = [units.groups.groups[group].name for group in groups]
            several = f" ({len(names)} groups)" if len(names) > 1 else ""
            kept.setdefault(row, f"{names[0]}{several}: {row[groups[0]]} of {units.sizes[groups[0]]}")
        for share in _SHARES if self.target == "latency" and self.choice.free else ():
            row = list(units.sizes)
            for groups in units.sets:
                for group in groups:
                    row[group] = units.allowed(
                        group, units.sizes[group] - count(1 - share, units.sizes[group])
                    )
            kept.setdefault(tuple(row), f"{share:.0%} of all groups")
        kept.pop(units.sizes, None)
        made = {name: Candidate(self.full, row).made()[1] for row, name in kept.items()}
        found = self.networks.measure(made) if made or self.target == "latency" else {}
        return {row: found[name] for row, name in kept.items()}

    @cached_property
    def seconds(self) -> Seconds:
        """What parts of the model take, as shares of the dense latency."""
        units = self.full.units
        rows = [units.sizes, *self.table]
        return fit(
            units.parts,
            rows,
            [1.0, *(float(found.latency or 1.0) for found in self.table.values())],
        )

    @cached_property
    def weights(self) -> dict[str, float] | None:
        """How much groups of the full model matter, by name; None if scores say it.

        Where no error tells groups apart, they matter as much as they cost, and lose equal shares.
        """
        if not self._is_weighted:
            return None
        units, found, neutral = self.full.units, {}, {}
        cost = self._cost(units)
        for groups in self._kinds:
            row = units.halved(groups)
            removed = {group: units.sizes[group] - row[group] for group in groups}
            lost = sum(_lost(units.scores[group], number) for group, number in removed.items())
            measured = self.table.get(row)
            error = None if measured is None else measured.error
            saved = cost.saved(units.sizes, removed)
            for group in groups:
                name = units.groups.groups[group].name
                found[name] = error / lost if error is not None and lost > 0 else 0.0
                neutral[name] = float(saved) / lost if lost > 0 else float(saved)
        known = [weight for weight in found.values() if 0 < weight < np.inf]
        if not known:
            return neutral
        return {name: float(np.clip(w, 1e-6 * max(known), max(known))) for name, w in found.items()}

    @property
    def _is_weighted(self) -> bool:
        return self.scope == "global" and self.normalize is not None

    @cached_property
    def _kinds(self) -> list[tuple[int, ...]]:
        return self.full.units.kinds()

    # Depths and widths

    def _depths(self) -> list[Stage]:
        """The full model, and what is left of it without some layers, one more each time."""
        stages = [self.full]
        if self.branches is None:
            return stages
        params, score = self.networks.dense[1], self.layer_score
        if score is None:
            score = block_influence(self.branches, params, [self.networks.inputs])
        for number in range(1, len(self.branches.at("parts"))):
            try:
                plan = plan_layers(self.branches, params, number=number, score=score)
            except ValueError:
                if number == 1:
                    raise
                break  # no branch is left
            stages.append(self._without(plan))
            if self.cost(Candidate(stages[-1], stages[-1].units.sizes)) <= self.share * (1 - self.tolerance):
                break
        return stages

    def _without(self, plan: LayerPlan) -> Stage:
        fn, params = self.networks.dense
        fn, params = plan.compact(fn), plan.shrink(params)
        groups = find_groups(fn, params, *self.networks.inputs, state=self.choice.groups.state)
        score = self.score
        if score is not None and not callable(score) and not isinstance(score, UnitScores):
            score = plan.shrink(score)
        return Stage(plan, fn, params, self.choice.units(groups, params, score))

    def _few(self, stages: list[Stage]) -> list[Stage]:
        """Some of the depths at which widths are still to be reduced."""
        left = [s for s in stages if self.cost(Candidate(s, s.units.sizes)) > self.share] or stages[-1:]
        places = np.unique(np.linspace(0, len(left) - 1, min(_DEPTHS, len(left))).round().astype(int))
        return [left[place] for place in places]

    def _path(self, stage: Stage) -> list[Candidate]:
        units = stage.units
        if self.scope == "local":
            rows = uniform_path(units)
        else:
            names = self.choice.names(units.groups)
            weights = None if self.weights is None else [self.weights.get(name, 0.0) for name in names]
            rows = cheapest_path(units, self._cost(units), weights)
        return [Candidate(stage, tuple(map(int, row))) for row in rows]

    # The target

    def _first(self, path: Sequence[Candidate]) -> int:
        return first_below(self._costs(path), self.share)

    def _costs(self, path: Sequence[Candidate]) -> np.ndarray:
        if len({id(candidate.stage) for candidate in path}) > 1:
            return np.array([self.cost(candidate) for candidate in path])
        kept = np.array([candidate.kept for candidate in path], np.int64).reshape(len(path), -1)
        found = self._cost(path[0].stage.units).of(list(kept.T))
        return np.broadcast_to(np.asarray(found, np.float64), len(path)) / self._whole

    def _measured(self, candidate: Candidate) -> Measurement:
        return self.networks.measure({candidate.name: candidate.made()[1]})[candidate.name]

    def _met(self, path: Sequence[Candidate]) -> tuple[Any, Measured]:
        """The candidate of a path that meets the target."""
        if self.target != "latency":
            place = self._first(path)
            if place == len(path):
                raise self._unreachable(self.cost(path[-1]))
            small = float(self._cost(path[place].stage.units).of(path[place].kept))
            return path[place].made()[0], self._told(small / self._whole, self._whole, small)
        costs = self._costs(path)
        low, high, goal = 0, len(path) - 1, self.share
        found: dict[int, float] = {}
        for _ in range(_CORRECTIONS):
            place = int(np.clip(first_below(costs, goal), low, high))
            if place not in found:
                found[place] = float(self._measured(path[place]).latency or 1.0)
            reached = found[place]
            if abs(reached / self.share - 1) <= self.tolerance:
                break
            low, high = (place + 1, high) if reached > self.share else (low, place - 1)
            if low > high:
                break
            goal = float(costs[place]) * self.share / reached
        below = {i: r for i, r in found.items() if r <= self.share * (1 + self.tolerance)}
        if not below:
            last = len(path) - 1
            if last not in found:
                found[last] = float(self._measured(path[last]).latency or 1.0)
            if found[last] > self.share * (1 + self.tolerance):
                raise self._unreachable(min(found.values()))
            below = {last: found[last]}
        place = max(below, key=below.__getitem__)
        dense = self.networks.dense_seconds
        return path[place].made()[0], self._told(below[place], dense, below[place] * dense)

    def _told(self, reached: float, dense: float, small: float) -> Measured:
        networks = self.networks
        where = networks.where if self.target == "latency" else ""
        table = tuple(networks.table)
        return Measured(self.target, self.share, reached, dense, small, where, networks.compilations, table)

    def _unreachable(self, least: float) -> ValueError:
        return ValueError(
            f"`{self.target}` {self.share:g} can't be reached: with what `minimum`, `round_to`, `exclude`, `only` and "
            f"the frozen groups keep, the smallest model has {least:.3f} of the dense one's."
        )


def _lost(scores: np.ndarray, number: int) -> float:
    """The damage, without its weight, when so many of the lowest scores go."""
    whole, rest = float(scores.sum()), float(scores[number:].sum())
    return float(np.log(whole) - np.log(max(rest, whole * 1e-12))) if whole > 0 else 0.0
