"""A recipe: one answer to each of the four questions of pruning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jaxprune.allocate import erk, uniform
from jaxprune.allocation import check_fraction
from jaxprune.params import PyTree, aligned, flatten_with_paths, prunable_leaves
from jaxprune.structures import Structure, Unstructured
from jaxprune.whole_numbers import check_whole

# What `allocation=` takes: a tree of sparsities, a function (params, sparsity, where=) -> tree, the name of one.
Allocation = Any
ALLOCATIONS = {"erk": erk, "uniform": uniform}


class Task(NamedTuple):
    """The training that a recipe is set up for: the arguments of `Recipe.transform`."""

    params: PyTree
    steps: int
    key: Any = None
    loss_fn: Any = None
    batches: Any = None
    fn: Any = None
    inputs: Any = None
    where: Any = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named method; the functions of `jp.recipes` make it, and printing it shows its four choices.

    Args:
      name: name of the method.
      sparsity: fraction of the units that is pruned at the end, in [0, 1).
      structure: which weights are pruned together.
      scoring: which units are pruned first, and across what they are ranked.
      scheduling: when units are pruned.
      initialization: from which values training continues.
      make: (inner, task) -> optax transformation.
      needs: fields of `Task` that must be given.
    """

    name: str
    sparsity: float
    scoring: str
    scheduling: str
    initialization: str
    make: Callable[[optax.GradientTransformation, Task], optax.GradientTransformationExtraArgs]
    structure: Structure = Unstructured()
    needs: tuple[str, ...] = ()

    def __post_init__(self):
        check_final(self.sparsity, self.structure, self.name)

    def __str__(self) -> str:
        return four_choices(self)

    __repr__ = __str__

    def transform(
        self,
        inner: optax.GradientTransformation,
        params: PyTree,
        *,
        steps: int,
        key: jax.Array | None = None,
        loss_fn: Callable[[PyTree, Any], jax.Array] | None = None,
        batches: Sequence[Any] | None = None,
        fn: Callable[..., Any] | None = None,
        inputs: Sequence[Any] | None = None,
        where: PyTree | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that carries out the recipe: with masks that are made here, or with their schedule.

        Nothing else in the training loop changes, and `jp.get_masks(opt_state)` reads the masks. This method also
        runs under `jit`.

        Args:
          inner: any optax optimizer.
          params: the parameters that training starts from.
          steps: number of all training steps.
          key: a `jax.random.key`, for random masks and random growth.
          loss_fn: (params, batch) -> loss, for scores from gradients.
          batches: the batches for such scores.
          fn: (params, *inputs) -> outputs, for scores from the network alone.
          inputs: the inputs of `fn`; only the shapes count.
          where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
            one; None for `prunable(params)`.

        Returns:
          An optax transformation with masks in its state.

        Raises:
          ValueError: if an argument that the recipe needs is missing, or there is less than one step.

        Example:
          >>> import jax, jax.numpy as jnp, optax
          >>> import jaxprune as jp
          >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
          >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"] - 1) ** 2)
          >>> x = jax.random.normal(jax.random.key(1), (16, 8))
          >>> tx = jp.recipes.snip(0.75).transform(
          ...     optax.adam(1e-2), params, steps=100, loss_fn=loss_fn, batches=[x])
          >>> jp.sparsity(params, jp.get_masks(tx.init(params)))
          0.75
        """
        task = Task(params, steps, key, loss_fn, batches, fn, inputs, where)
        check_whole(steps=steps)
        for name in self.needs:
            if getattr(task, name) is None:
                raise ValueError(f"`{name}` must be given to transform(): {self.name} needs it.")
        return self.make(inner, task)


def four_choices(recipe: Any) -> str:
    """The printed form of a recipe."""
    return "\n".join(
        [
            f"{recipe.name}, sparsity {recipe.sparsity:g}",
            f"  structure       {recipe.structure}",
            f"  scoring         {recipe.scoring}",
            f"  scheduling      {recipe.scheduling}",
            f"  initialization  {recipe.initialization}",
        ]
    )


def check_final(sparsity: Any, structure: Structure, name: str) -> None:
    """Raises if a recipe cannot end at this sparsity: it must be in [0, 1), and with N:M that of the pattern."""
    check_fraction("sparsity", sparsity)
    structure.check_sparsity(float(sparsity), name)


def allocated(allocation: Allocation, sparsity: float, params: PyTree, where: PyTree | None) -> Any:
    """The sparsity of all leaves, or the tree of an allocation, whose total must be that sparsity."""
    if allocation is None:
        return sparsity
    check_allocation(allocation)
    made = ALLOCATIONS[allocation] if isinstance(allocation, str) else allocation
    shares = made(params, sparsity, where=where) if callable(made) else made
    paths, leaves, _ = flatten_with_paths(params)
    found, chosen = aligned(params, shares, "allocation"), prunable_leaves(params, where)
    for i in chosen:
        check_fraction("allocation", found[i], paths[i])
    if any(isinstance(found[i], jax.core.Tracer) for i in chosen):
        return shares
    sizes = [math.prod(leaves[i].shape) for i in chosen]
    pruned = sum(float(found[i]) * n for i, n in zip(chosen, sizes, strict=True))
    # Half a weight per leaf is rounding; half a percent is the rounding of a sparsity written with two digits.
    if abs(pruned - sparsity * sum(sizes)) > len(sizes) / 2 + 0.005 * sum(sizes):
        raise ValueError(
            f"`allocation` must have the recipe's sparsity of {sparsity:g} in total, but it prunes "
            f"{pruned / max(sum(sizes), 1):.3g} of the weights."
        )
    return shares


def check_allocation(allocation: Allocation) -> None:
    """Raises for an unknown name, or a single number."""
    if isinstance(allocation, str) and allocation not in ALLOCATIONS:
        names = ", ".join(map(repr, ALLOCATIONS))
        raise ValueError(
            f"`allocation` must be one of {names}, a function or a tree of sparsities, got {allocation!r}."
        )
    if isinstance(allocation, bool | int | float):
        raise TypeError(
            f"`allocation` must be a name, a function or a tree of sparsities, got {allocation!r}."
        )


def compared_over(scope: str, allocation: Allocation) -> str:
    """The scope, or the allocation that takes its place, as a recipe prints it."""
    if allocation is None:
        return scope
    if isinstance(allocation, str):
        check_allocation(allocation)
        allocation = ALLOCATIONS[allocation]
    if not callable(allocation):
        return "given allocation"
    name = getattr(allocation, "__name__", type(allocation).__name__)
    return f"{'ERK' if name == 'erk' else name} allocation"


def check_part(**parts: Any) -> None:
    """Raises ValueError unless each is a fraction of the training, in [0, 1)."""
    for name, part in parts.items():
        check_fraction(name, part)
