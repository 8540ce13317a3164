"""What `jaxprune shrink` removes: first layers, then units, until the budget is met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxprune.own_model.checking import Checked
from jaxprune.own_model.scoring import layer_scores_by_name, unit_scores_by_name
from jaxprune.own_model.sizes import sizes
from jaxprune.params import PyTree
from jaxprune.surgery import (
    Groups,
    LayerPlan,
    Plan,
    UnitScores,
    compensate,
    find_branches,
    find_groups,
    plan_layers,
    plan_removal,
)
from jaxprune.tables import listed
from jaxprune.targets import plan_to

Say = Callable[[str], None]
_WORDS = {"params": "parameters", "flops": "FLOPs"} | {name: name for name in ("bytes", "latency", "units")}


@dataclass(frozen=True)
class Small:
    """A small model, and how it was made.

    fn, params: the small model; layers, units: the plans, None where nothing of the kind was asked for; plan: both
    as one; verified: check -> the largest difference, relative to the largest output; scores: what ranked the units
    and the layers; compensated: whether kept weights were refitted.
    """

    fn: Callable[..., Any]
    params: PyTree
    layers: LayerPlan | None
    units: Plan | None
    plan: Any
    verified: dict[str, float]
    scores: dict[str, str]
    compensated: bool


def removed(of: Checked, options: Any, say: Say) -> Small:
    """Plans, compensates and verifies.

    Args:
      of: the model.
      options: those of the command.
      say: tells what is done next.

    Raises:
      ValueError: if the model lacks what a score needs, if the budget can't be met, or if the small function does not
        compute what it must.
    """
    fn, params, inputs = of.model.fn, of.model.params, of.model.inputs
    verified: dict[str, float] = {}
    scores: dict[str, str] = {}
    layers: LayerPlan | None = None
    units: Plan | None = None
    if options.layers:
        layers = _layers(of, options, scores, say)
        verified["layers"] = _error(layers.verify(fn, params, *inputs))
        fn, params = layers.compact(fn), layers.shrink(params)
    refitted = False
    share = 1.0 if options.budget is None else _left_of(of, options, fn, params)
    if share < 1:
        units = _units(of, options, share, fn, params, scores, say)
        refitted = bool(of.batches) and not options.no_compensate
        if refitted:
            say(f"compensating with {len(of.batches)} batches")
            params = compensate(fn, params, units, of.batches)
        say("verifying")
        verified["units"] = _error(units.verify(fn, params, *inputs))
        fn, params = units.compact(fn), units.shrink(params)
    plan = units if layers is None else layers if units is None else layers.then(units)
    return Small(fn, params, layers, units, plan, verified, scores, refitted)


def _layers(of: Checked, options: Any, scores: dict[str, str], say: Say) -> LayerPlan:
    model = of.model
    say("looking for layers")
    branches = find_branches(model.fn, model.params, *model.inputs)
    scores["layers"] = options.layer_score or ("influence" if of.batches else "norm")
    say(f"scoring layers by {scores['layers']}")
    return plan_layers(
        branches,
        model.params,
        number=options.layers,
        score=layer_scores_by_name(scores["layers"], branches, of),
        exclude=options.keep_layers,
        level=options.layer_level,
    )


def _units(
    of: Checked,
    options: Any,
    share: float,
    fn: Callable[..., Any],
    params: PyTree,
    scores: dict[str, str],
    say: Say,
) -> Plan:
    budget, _ = options.budget
    say("looking for units")
    groups = find_groups(fn, params, *of.model.inputs)
    if not len(groups):
        raise ValueError("no units can be removed from this model: `jaxprune inspect` says why.")
    name = scores["units"] = options.score or ("activations" if of.batches else "magnitude")
    say(f"scoring {sum(group.size for group in groups)} units by {name}")
    found = unit_scores_by_name(name, groups, params, of, of.model.loss)
    unscored = _unscored(name, found, groups)
    if unscored:
        say(f"{name} has no scores for {listed(unscored, 3)}: these keep all units")
    say(f"planning for {share:g} of the {_WORDS[budget]}")
    choice: dict[str, Any] = {
        "score": found,
        "minimum": options.minimum,
        "exclude": (*options.exclude, *unscored),
        "only": options.only or None,
        "alike": True if "auto" in options.alike else options.alike,
    }
    scope = options.scope or ("global" if budget == "latency" else "local")
    if budget == "units":
        normalize = None if name == "obs" and scope == "global" else "mean"
        return plan_removal(
            groups,
            params,
            1 - share,
            scope=scope,
            round_to=options.round_to or 1,
            budget="units",
            normalize=normalize,
            **choice,
        )
    # Errors of outputs are measured on data; latencies at the example's sizes.
    inputs = of.batches[0] if of.batches and scope == "global" and budget != "latency" else of.model.inputs
    more: dict[str, Any] = {budget: share, "scope": scope, "round_to": options.round_to, **choice}
    return plan_to(groups, fn, params, inputs, runtime=options.runtime, **more)  # type: ignore[return-value]


def _left_of(of: Checked, options: Any, fn: Callable[..., Any], params: PyTree) -> float:
    """The share of what layers leave that is the share of the dense model's which is asked for."""
    budget, share = options.budget
    if not options.layers or budget in ("units", "latency"):
        return share
    field = "parameters" if budget == "params" else budget
    dense, left = (
        getattr(sizes(f, p, of.model.inputs), field)
        for f, p in ((of.model.fn, of.model.params), (fn, params))
    )
    return share * dense / max(left, 1)


def _unscored(name: str, scores: UnitScores, groups: Groups) -> list[str]:
    """The groups that keep all units because such a score says nothing about them: without a norm, not experts."""
    partial = name in ("batch_norm", "obs", "reap")
    return [group.name for group in groups if group.name not in scores] if partial else []


def _error(verification: Any) -> float:
    """The error of a verification; raises ValueError if it is too large."""
    error = verification.error if hasattr(verification, "error") else verification.masked
    if not verification.ok:
        raise ValueError(
            f"the small function does not compute what the function computes without what is removed: "
            f"{' '.join(str(verification).split())}."
        )
    return float(error)
