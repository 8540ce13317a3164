"""Scoring: which units of a recipe are pruned first, and across what they are compared."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import optax
from jax.core import Tracer

from jaxprune.allocation import Scope, check_minimum, check_scope
from jaxprune.masking import Criterion
from jaxprune.params import PyTree
from jaxprune.recipes._allocation import Allocation, allocation_text, check_allocation
from jaxprune.scores import magnitude, normalize
from jaxprune.scores._normalize import By
from jaxprune.scores._scorer import call_score, first_of, name_of, parameters_of
from jaxprune.sparse_training import group_penalty
from jaxprune.structures import Structure, Unstructured


class Task(NamedTuple):
    """The training that a recipe is carried out in: the arguments of `Recipe.transform`."""

    params: PyTree
    steps: int
    key: Any = None
    loss_fn: Any = None
    batches: Any = None
    fn: Any = None
    inputs: Any = None
    where: Any = None


@dataclasses.dataclass(frozen=True)
class OfMeanKept:
    """The units that each layer keeps at least, as a share of the mean number that a layer keeps.

    Args:
      share: in [0, 1]; 1 prunes every layer to the same number of units.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.OfMeanKept(0.5)
      OfMeanKept(share=0.5)
    """

    share: float

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"`share` must be in [0, 1], got {self.share}.")

    def minimum(self, sparsity: float, params: PyTree, structure: Structure, where: PyTree | None) -> int:
        """The number of units."""
        if isinstance(sparsity, Tracer):
            raise ValueError(f"`sparsity` must be a known number with {self}, got a traced one.")
        numbers = Criterion(structure, where=where).units(params).numbers
        return int(self.share * (1 - sparsity) * sum(numbers) / len(numbers))


@dataclasses.dataclass(frozen=True, repr=False)
class Scoring:
    """Which units are pruned first, and across what they are compared.

    What is removed for real has scores of its own. `jp.RemoveUnits` takes functions (groups, params) such as
    `jp.surgery.l2_scores`, and `jp.RemoveLayers` functions (branches, params) such as `jp.surgery.branch_norms`.
    They may also have arguments `loss_fn`, `batches` and `key`, which are those of the experiment; the loss is at the
    present size. A score of weights gives each unit the sum over its weights. The default, `magnitude`, stands for
    `l2_scores` divided by the mean of each group, and for `branch_norms`. Units also take `scope`, `minimum` as a
    whole number (at least 1) and `normalize` by "mean" or "max"; layers take `score` alone.

    Args:
      score: one of `jp.scores`, or a function of your own. It is called by the names of its arguments: (params),
        (params, key), (loss_fn, params, *batch) or (fn, params, *inputs), the last two with a `key` too; what it
        needs beside the parameters is given to `Recipe.transform` or `Recipe.experiment`. If it has an argument
        `structure`, it is given that of the recipe. See below for units and layers that are removed.
      scope: "global" compares the units of all layers, "local" those of each layer.
      allocation: a sparsity for each layer instead of `scope`: a tree whose total is the recipe's sparsity, a
        function (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".
      minimum: number of units that each layer keeps at least, or their share, as for `make_masks`; or
        `jp.recipes.OfMeanKept(share)`.
      normalize: divides the scores of each layer by their "mean", "max", "l2" norm or "sum", as
        `jp.scores.normalize` does.
      group_lasso: strength of a penalty `sum_g sqrt(n_g) ||w_g||` on the units, whose gradient is added to that of
        the loss, so that training makes whole units small.

    Raises:
      ValueError: an unknown scope, allocation or normalization, or a number out of its range.
      TypeError: a score that is no function.

    Example:
      >>> import jaxprune as jp
      >>> jp.Scoring(jp.scores.snip, allocation="erk")
      Scoring(snip, allocation='erk')
      >>> jp.Scoring(scope="local")
      Scoring(magnitude, scope='local')
    """

    score: Callable[..., PyTree] = magnitude
    scope: Scope = "global"
    allocation: Allocation = dataclasses.field(default=None, hash=False)
    minimum: int | float | OfMeanKept = 0
    normalize: By | None = None
    group_lasso: float = 0.0

    def __post_init__(self):
        if not callable(self.score):
            raise TypeError(f"`score` must be a function such as jp.scores.magnitude, got {self.score!r}.")
        check_scope(self.scope, Unstructured())
        check_allocation(self.allocation)
        if not isinstance(self.minimum, OfMeanKept):
            check_minimum(self.minimum)
        if self.normalize is not None and self.normalize not in get_args(By):
            names = ", ".join(map(repr, get_args(By)))
            raise ValueError(f"`normalize` must be None or one of {names}, got {self.normalize!r}.")
        if not self.group_lasso >= 0:
            raise ValueError(f"`group_lasso` must be at least 0, got {self.group_lasso!r}.")

    def __repr__(self) -> str:
        parts = [self.name]
        if self.allocation is not None:
            parts.append(f"allocation={allocation_text(self.allocation)}")
        else:
            parts.append(f"scope={self.scope!r}")
        for name, without in (("minimum", 0), ("normalize", None), ("group_lasso", 0.0)):
            if getattr(self, name) != without:
                parts.append(f"{name}={getattr(self, name)!r}")
        return f"Scoring({', '.join(parts)})"

    @property
    def name(self) -> str:
        """The name of the score."""
        return name_of(self.score)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of a `Task` that the score needs."""
        return {"loss_fn": ("loss_fn", "batches"), "fn": ("fn", "inputs")}.get(first_of(self.score), ())

    @property
    def needs_key(self) -> bool:
        """Whether the score can't do without a key."""
        return any(p.default is p.empty for p in self._keys)

    @property
    def _keys(self) -> list[inspect.Parameter]:
        return [p for name, p in parameters_of(self.score).items() if name in ("key", "rng")]

    def of_task(self, task: Any, structure: Structure) -> Callable[..., PyTree]:
        """The function (params, key) -> scores: the score with all else that it needs bound to it.

        Args:
          task: has the fields that `needs` names.
          structure: of the recipe.
        """
        more: dict[str, Any] = {}
        if "structure" in parameters_of(self.score) and hasattr(structure, "unit_shape"):
            more["structure"] = structure

        def scored(params: PyTree, key: jax.Array | None = None) -> PyTree:
            drawn = {p.name: key for p in self._keys if key is not None}
            if first_of(self.score) == "loss_fn":
                scores = self.score(task.loss_fn, params, *task.batches, **drawn, **more)
            elif first_of(self.score) == "fn":
                scores = self.score(task.fn, params, *task.inputs, **drawn, **more)
            else:
                scores = call_score(functools.partial(self.score, **more), params, key)
            return scores if self.normalize is None else normalize(scores, self.normalize)

        return scored

    def least(self, sparsity: Any, params: PyTree, structure: Structure, where: PyTree | None) -> int | float:
        """What `minimum` is for a tree."""
        if isinstance(self.minimum, OfMeanKept):
            return self.minimum.minimum(sparsity, params, structure, where)
        return self.minimum

    def penalized(
        self, inner: optax.GradientTransformation, structure: Structure, where: PyTree | None
    ) -> optax.GradientTransformation:
        """The optimizer with the gradient of the penalty added to that of the loss."""
        if not self.group_lasso:
            return inner

        def penalize(grads: PyTree, params: PyTree | None) -> PyTree:
            pull = jax.grad(group_penalty)(params, structure, where)
            return jax.tree.map(lambda g, p: g + (self.group_lasso * p).astype(g.dtype), grads, pull)

        return optax.chain(optax.stateless(penalize), inner)
