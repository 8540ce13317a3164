"""Planning: units are removed in the order of their scores until a budget of units, parameters or FLOPs is met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from jaxprune.deprecated import warn_renamed
from jaxprune.params import PyTree
from jaxprune.surgery.groups import Group, Groups
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.model import OUTPUT_STATE
from jaxprune.surgery.planning.alike import Alike, alike_sets
from jaxprune.surgery.planning.budget import Budget, count, first_level
from jaxprune.surgery.planning.dimensions import factors_of
from jaxprune.surgery.planning.plan import Plan
from jaxprune.surgery.scores import Score, l2_scores, unit_scores


def plan_removal(
    groups: Groups,
    params: PyTree,
    sparsity: float = 0.5,
    scope: Literal["local", "global"] = "local",
    score: Score | None = None,
    round_to: int = 1,
    minimum: int = 1,
    budget: Literal["params", "flops", "units"] = "params",
    normalize: Literal["mean", "max"] | None = "mean",
    overrides: Mapping[str, float] | None = None,
    exclude: str | Iterable[str] = (),
    only: str | Iterable[str] | None = None,
    alike: Alike = (),
) -> Plan:
    """Chooses the units to remove.

    The units with the lowest scores are removed first. The score of a unit is the L2 norm of its slices of all
    members. If weight scores are given, it is their sum over these slices; if `UnitScores` are given, these are
    used. The score is then divided by the mean (or maximum) over its group.

    Args:
      groups: the groups that `find_groups` returned.
      params: the parameters that were analysed, as arrays.
      sparsity: fraction of the budget to remove, in [0, 1). If all n units cost the same, exactly
        `round(sparsity * n)` units are removed; if their costs differ, the fewest that reach the fraction.
      scope: "local" removes the same fraction of each group's units, "global" the lowest scores of all groups.
      score: `UnitScores` (from `jp.surgery.taylor_scores` or one of its siblings), or a tree like `params` of scores
        that broadcast to the parameters (larger = keep; None leaves do not count), or a function of `params` that
        gives one of the two. By default `jp.surgery.l2_scores`.
      round_to: the number of kept units of a group is a multiple of this, unless the group keeps all its units.
      minimum: minimum number of units that every group keeps. A group of experts of which a router chooses k
        (`group.chosen`) also keeps k of them.
      budget: the quantity that `sparsity` is a fraction of: "params" (entries of all parameters), "flops" (of
        contractions and convolutions at the traced shapes) or "units".
      normalize: unit scores are divided by the "mean" or "max" of their group; None leaves them unchanged.
      overrides: mapping from groups to the fraction of their units to remove, independent of the budget. A key is
        the name of a group, or a regular expression that matches a whole path of one of its members (or a
        leading part of the path that ends before a slash). Names, members and leading parts of paths may also be
        written as the printed groups have them, with `*` for any text without a slash: `"layers/*/up[1]"`.
      exclude: names or path patterns, as in `overrides`, of groups that lose no units.
      only: names or path patterns of the only groups that may lose units; all others are excluded.
      alike: groups that must lose the same number of units each, so that one number of a model's configuration fits
        all layers. Each pattern (as in `overrides`) stands for one set of groups; several patterns in a tuple
        stand for one set together. True makes those alike whose names, and those of their members, differ in a
        layer's number alone. With scope="global" the units of a set are removed together, one of each group: their
        score is the mean over the groups.

    Returns:
      The plan.

    Raises:
      ValueError: if an argument is out of range, if a pattern matches no group, if a group that may lose units has
        no score, if groups that must be alike differ in size or in what is excluded or overridden, or if the budget
        can't be reached.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[3.0, 1.0, 2.0]]), "down": jnp.array([[1.0], [1.0], [1.0]])}
      >>> mlp = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> groups = jp.find_groups(mlp, params, jnp.ones((1, 1)))
      >>> plan = jp.plan_removal(groups, params, 0.3, budget="units")
      >>> plan.shrink(params)["up"]
      Array([[3., 2.]], dtype=float32)
      >>> plan.compact(mlp)(plan.shrink(params), jnp.ones((5, 1))).shape
      (5, 1)

    References:
      Li et al., Pruning Filters for Efficient ConvNets, 2016, arXiv:1608.08710.
    """
    if normalize == "none":
        warn_renamed("`normalize='none'`", "`normalize=None`")
        normalize = None
    _check(sparsity, scope, round_to, minimum, budget, normalize)
    fixed = {**dict.fromkeys(excluded(groups, exclude, only), 0.0)}
    for pattern, share in (overrides or {}).items():
        if not 0 <= share < 1:
            raise ValueError(
                f"`overrides` must be in [0, 1), got {share!r} at {pattern!r}. It is a fraction."
            )
        fixed.update(dict.fromkeys(groups.named((pattern,), "overrides"), float(share)))
    set_of = alike_sets(groups, alike, fixed)
    scores = unit_scores(groups, params, l2_scores(groups, params) if score is None else score)
    order = {name: _normalized(s, normalize) for name, s in scores.by_group.items()}
    unscored = [g.name for g in groups if g.name not in order and fixed.get(g.name) != 0]
    if unscored:
        raise ValueError(
            f"`score` has no scores for group {unscored[0]!r} ({len(unscored)} in all): pass "
            f"exclude={unscored[:5]}{' and so on' if len(unscored) > 5 else ''}, or give scores for them."
        )

    def removable(group: Group, number: int) -> int:
        least = max(by_name[name].minimum for name in set_of[group.name])
        kept = max(min(minimum, group.size), least, group.size - number)
        return group.size - min(group.size, -(-kept // round_to) * round_to)

    by_name = {group.name: group for group in groups}
    lost = {
        by_name[name]: removable(by_name[name], count(share, by_name[name].size))
        for name, share in fixed.items()
    }
    free = [group for group in groups if group.name not in fixed]
    ranks = _ranks(free, order, set_of) if scope == "global" else {}

    def keep_for(level: Any) -> Keep:
        numbers = dict(lost)
        for group in free:
            number = (
                count(level, group.size) if scope == "local" else np.searchsorted(ranks[group.name], level)
            )
            numbers[group] = removable(group, int(number))
        masks = {}
        for group, number in numbers.items():
            if number:
                masks[group.atom] = np.ones(group.size, bool)
                masks[group.atom][np.argsort(order[group.name], kind="stable")[:number]] = False
        return Keep(masks)

    counted = Budget(groups, budget)
    target, level = counted.target(sparsity, scope, free, lost)
    levels: Sequence[Any] = range(sum(group.size for group in free) + 1)
    if scope == "local":
        steps = {Fraction(i, group.size) for group in free for i in range(1, group.size + 1)}
        levels = sorted({Fraction(0), min(level, Fraction(1)), *steps})
    most = counted.removed(keep_for(levels[-1]))
    if most < target:
        of_outputs = groups.state is None and any(" of output " in f.reason for f in groups.frozen)
        raise ValueError(
            f"`sparsity` {sparsity} of the {budget} can't be reached: with `minimum`={minimum}, "
            f"`round_to`={round_to}{_routed(free)} and the frozen and excluded groups, at most "
            f"{most / max(counted.whole, 1):.3f} can be removed."
            + (f" Axes of an output are frozen.{OUTPUT_STATE}" if of_outputs else "")
        )
    return _plan(groups, keep_for(first_level(levels, lambda i: counted.removed(keep_for(i)) >= target)))


def excluded(groups: Groups, exclude: str | Iterable[str], only: str | Iterable[str] | None) -> list[str]:
    """Names of the groups that lose no units: those of `exclude`, and all but those of `only`."""
    names = groups.named(exclude, "exclude")
    if only is not None:
        free = set(groups.named(only, "only"))
        names += [group.name for group in groups if group.name not in free]
    return names


def _routed(groups: Sequence[Group]) -> str:
    found = [f"{group.chosen} of {group.name!r}" for group in groups if group.chosen > 1]
    return f", the units that routers choose ({', '.join(found)})" if found else ""


def plan_units(groups: Groups, keep: Mapping[str, Any]) -> Plan:
    """Makes a plan that keeps the given units.

    Args:
      groups: the groups that `find_groups` returned.
      keep: group name -> bool array of shape (group.size,), True = keep; groups that are not named lose no units.

    Returns:
      The plan.

    Raises:
      KeyError: if no group has this name.
      ValueError: if a mask has the wrong shape or keeps no unit, or fewer than a router chooses.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.ones((2, 4)), "down": jnp.ones((4, 1))}
      >>> groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 2)))
      >>> jp.surgery.plan_units(groups, {"down[0]": [True, False, False, True]}).small_shapes
      {'down': (2, 1), 'up': (2, 2)}
    """
    masks = {}
    for name, mask in keep.items():
        group = groups[name]
        mask = np.asarray(mask, bool)
        if mask.shape != (group.size,) or not mask.any():
            raise ValueError(
                f"`keep` must have shape ({group.size},) and keep at least one unit, got {mask.shape} with "
                f"{mask.sum()} kept units at {name!r}."
            )
        check_chosen(group, mask, "keep")
        masks[group.atom] = mask
    return _plan(groups, Keep(masks))


def check_chosen(group: Group, mask: np.ndarray, argument: str) -> None:
    """Raises ValueError if fewer units are kept than a router chooses."""
    if mask.sum() < group.chosen:
        raise ValueError(
            f"`{argument}` must keep at least {group.chosen} units of group {group.name!r}, because a router chooses "
            f"{group.chosen} of them (top_k or argmax at {group.source}), got {mask.sum()} of {group.size}."
        )


def _normalized(scores: np.ndarray, how: str | None) -> np.ndarray:
    if not scores.size or how is None:
        return scores
    by = {"mean": scores.mean, "max": scores.max}[how]()
    return scores / by if by > 0 else scores


def _ranks(
    groups: Sequence[Group], scores: Mapping[str, np.ndarray], set_of: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """For each group the sorted ranks of its units among all units; rank 0 is the lowest score.

    A set of alike groups is ranked as one: the n-th lowest units of its groups have the mean of their scores.
    """
    if not groups:
        return {}
    sets = list(dict.fromkeys(tuple(set_of[g.name]) for g in groups))
    means = [
        scores[names[0]] if len(names) == 1 else np.mean([np.sort(scores[name]) for name in names], axis=0)
        for names in sets
    ]
    owner = np.concatenate([np.full(len(mean), i) for i, mean in enumerate(means)])
    order = np.argsort(np.concatenate(means), kind="stable")
    return {name: np.flatnonzero(owner[order] == i) for i, names in enumerate(sets) for name in names}


def _check(sparsity: Any, scope: str, round_to: int, minimum: int, budget: str, normalize: Any) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"`sparsity` must be in [0, 1), got {sparsity!r}. It is a fraction: pass 0.9 for 90 %."
        )
    for name, value, allowed in (
        ("scope", scope, ("local", "global")),
        ("budget", budget, ("params", "flops", "units")),
        ("normalize", normalize, ("mean", "max", None)),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    for name, number in (("round_to", round_to), ("minimum", minimum)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"`{name}` must be a positive whole number, got {number!r}.")


def _plan(groups: Groups, keep: Keep) -> Plan:
    shapes, kept = {}, {}
    for (path, axes), aval in zip(groups.model.axes.items(), groups.model.traced.avals, strict=True):
        masks = [keep.mask(axis) for axis in axes]
        kept[path] = tuple(None if mask.all() else mask for mask in masks)
        shapes[path] = tuple(aval.shape)
    return Plan(shapes, kept, groups.state, groups.model.inputs, factors_of(groups))
