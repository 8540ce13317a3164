"""Which layers are left out: those with the lowest scores, up to a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxprune.params import PyTree
from jaxprune.surgery.layers.branches import Branch, Branches
from jaxprune.surgery.layers.layer_plan import LayerPlan
from jaxprune.surgery.layers.scores.norm import branch_norms


def plan_layers(
    branches: Branches,
    params: PyTree,
    sparsity: float | None = None,
    score: Mapping[str, float] | None = None,
    budget: Literal["params", "flops", "branches"] = "params",
    exclude: str | Branch | Iterable[str | Branch] = (),
    *,
    number: int | None = None,
    level: Literal["parts", "blocks"] = "parts",
) -> LayerPlan:
    """Plans which layers to leave out: lowest score first, until the budget is met.

    The removed parameters are counted for each set of branches: weights that several branches share are removed
    with the last of them.

    Args:
      branches: what `find_branches` found.
      params: the parameters that were analysed.
      sparsity: the share to remove, in [0, 1); the plan removes at least that much. 0.25 unless `number` is given.
      number: the number of branches to leave out, in place of `sparsity`.
      score: branch name -> score, larger = keep, from `jp.surgery.block_influence` and its neighbours; branches
        that `level` or `exclude` leave out need none. By default `jp.surgery.branch_norms`.
      budget: what `sparsity` is a share of: the entries of all parameters, the FLOPs of the function, or the
        branches that may be removed.
      exclude: branches to keep: names, or regular expressions that match a whole name or a leading part of it,
        up to a slash. A block's parts are kept with it, and the block with any of them.
      level: "parts" ranks the innermost branches (attention and MLP apart), "blocks" the outermost ones.

    Returns:
      The plan.

    Raises:
      ValueError: an argument is out of range, a pattern matches no branch, a branch has no score or one that is
        no number, `params` is not what was analysed, or the budget would take all branches.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> layer = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 3))}
      >>> params = {"layer_0": layer, "layer_1": layer, "head": jnp.ones((3, 2))}
      >>> def fn(params, x):
      ...     for name in ("layer_0", "layer_1"):
      ...         x = x + jnp.tanh(x @ params[name]["up"]) @ params[name]["down"]
      ...     return x @ params["head"]
      >>> branches = jp.find_branches(fn, params, jnp.ones((1, 3)))
      >>> plan = jp.plan_layers(branches, params, number=1, score={"layer_0": 1.0, "layer_1": 0.2})
      >>> small = plan.shrink(params)
      >>> sorted(small), plan.compact(fn)(small, jnp.ones((5, 3))).shape
      (['head', 'layer_0'], (5, 2))

    References:
      Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024,
      arXiv:2403.03853.
    """
    _check(branches, params, sparsity, number, budget, level)
    free = branches.free(level, exclude)
    if not free:
        raise ValueError(
            "there is no branch to leave out: `find_branches` found none, or `exclude` keeps all."
        )
    score = branch_norms(branches, params) if score is None else score
    for branch in free:
        if branch.name not in score or not np.isfinite(float(score[branch.name])):
            said = score.get(branch.name, "nothing")
            raise ValueError(
                f"`score` must give a finite number for each branch that may be removed, got {said} for "
                f"{branch.name!r}. Score it too, or pass it in `exclude`."
            )
    order = sorted(free, key=lambda branch: float(score[branch.name]))
    wanted = number
    share = 0.25 if sparsity is None else sparsity
    if number is None and budget == "branches":
        wanted = round(share * len(free))
    names: list[str] = []
    for branch in order:
        if _met(branches, names, share, wanted, budget):
            break
        names.append(branch.name)
    if not _met(branches, names, share, wanted, budget) or (
        names and len(names) == len(free) == len(branches.at(level))
    ):
        gone = branches.removed(names)
        raise ValueError(
            f"{'`number`' if number is not None else '`sparsity`'} would take all {len(free)} branches that may "
            f"be removed ({gone.size / branches.size:.1%} of the parameters, "
            f"{gone.flops / max(branches.flops, 1):.1%} of the FLOPs). Leave out fewer."
        )
    return plan_of(branches, names)


def _met(branches: Branches, names: list[str], share: float, wanted: int | None, budget: str) -> bool:
    if wanted is not None:
        return len(names) >= wanted
    gone = branches.removed(names)
    done, whole = (gone.size, branches.size) if budget == "params" else (gone.flops, branches.flops)
    return done >= share * whole


def plan_of(branches: Branches, names: Sequence[str]) -> LayerPlan:
    """The plan that leaves out these branches."""
    traced, found = branches.graph.traced, branches.removed(names)
    shapes, kept = {}, {}
    for i, (path, aval) in enumerate(zip(traced.paths, traced.avals, strict=True)):
        shapes[path] = tuple(aval.shape)
        masks: list[np.ndarray | None] = [None] * len(aval.shape)
        if i in found.slices:
            masks[0] = np.ones(aval.shape[0], bool)
            masks[0][sorted(found.slices[i])] = False
        kept[path] = tuple(masks)
    gone = frozenset(traced.paths[i] for i in found.params)
    in_order = tuple(branch.name for branch in branches if branch.name in names)
    return LayerPlan(in_order, shapes, kept, gone, branches.tree)


def _check(branches: Branches, params: PyTree, sparsity: Any, number: Any, budget: str, level: str) -> None:
    if sparsity is not None and number is not None:
        raise ValueError("pass `sparsity` or `number`, not both.")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(
            f"`sparsity` must be in [0, 1), got {sparsity!r}. It is a fraction: pass 0.25 for 25 %."
        )
    if number is not None and (not isinstance(number, int) or number < 0):
        raise ValueError(f"`number` must be a whole number of branches, got {number!r}.")
    for name, value, allowed in (
        ("budget", budget, ("params", "flops", "branches")),
        ("level", level, ("parts", "blocks")),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    branches.check(params)
