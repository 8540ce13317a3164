"""Sensitivity: the effect on the loss of pruning one layer at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
import rich.table

from jaxprune.allocation import check_limit
from jaxprune.files import write_whole
from jaxprune.masking import Criterion
from jaxprune.masking.program import keep_masks
from jaxprune.masking.rounds import counts_of_rounds
from jaxprune.params import PyTree, aligned, is_float_array
from jaxprune.scores import magnitude
from jaxprune.scores._gradients import checked_loss, split_floats
from jaxprune.scores._scorer import call_score
from jaxprune.selection import Count, count_to_prune
from jaxprune.structures import Structure, Unstructured
from jaxprune.structures.by_leaf import is_by_leaf
from jaxprune.structures.structure import Cut
from jaxprune.tables import as_text
from jaxprune.whole_numbers import check_whole

SPARSITIES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_FORMAT = "jaxprune sensitivity 1"


@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivity:
    """The loss with one layer pruned. `sensitivity` makes it, `load` reads it; printing it shows a table.

    Attributes:
      paths: the layers (leaves that may be pruned, or the names of groups), in order.
      sparsities: the grid, ascending, in (0, 1).
      losses: float64 array (layers, sparsities): the loss with only that layer pruned, to that sparsity.
      dense: the loss with nothing pruned.
      units: number of units of each layer (weights, if unstructured).
      weights: number of weights of each layer.
      others: paths of the leaves that are never pruned.
      tree: the tree that was measured, of the paths of its leaves; None in a table that was read from a file.
    """

    paths: tuple[str, ...]
    sparsities: tuple[float, ...]
    losses: np.ndarray
    dense: float
    units: tuple[int, ...]
    weights: tuple[int, ...]
    others: tuple[str, ...] = ()
    tree: PyTree | None = dataclasses.field(default=None, repr=False)

    def __str__(self) -> str:
        table = rich.table.Table(box=rich.box.SIMPLE, show_footer=True, show_edge=False, pad_edge=False)
        table.add_column("layer", footer="nothing pruned")
        table.add_column("weights", footer=f"{sum(self.weights):,}", justify="right")
        table.add_column("loss at 0", footer=f"{self.dense:.4g}", justify="right")
        for sparsity in self.sparsities:
            table.add_column(f"{sparsity:.4g}", justify="right")
        for path, weights, losses in zip(self.paths, self.weights, self.losses, strict=True):
            table.add_row(path, f"{weights:,}", "", *(f"{loss:.4g}" for loss in losses))
        return as_text(table, width=1000)  # whole numbers, however long the grid

    __repr__ = __str__

    def to_json(self) -> str:
        """The table as JSON; a loss that is not finite is null."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "tree"
        }
        fields["losses"] = [[x if math.isfinite(x) else None for x in row] for row in self.losses.tolist()]
        return json.dumps({"format": _FORMAT, **fields}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The table from the text that `to_json` returned.

        Raises:
          ValueError: if the text is not such a table.
        """
        try:
            fields = json.loads(text)
            if fields.pop("format") != _FORMAT:
                raise ValueError("its format is different")
            paths, others = (tuple(map(_text, fields[name])) for name in ("paths", "others"))
            grid = tuple(map(float, fields["sparsities"]))
            units, weights = (tuple(map(_count, fields[name])) for name in ("units", "weights"))
            if len(units) != len(paths) or len(weights) != len(paths):
                raise ValueError("`paths`, `units` and `weights` differ in length")
            rows = [[math.inf if x is None else x for x in row] for row in fields["losses"]]
            if [len(row) for row in rows] != [len(grid)] * len(paths):
                raise ValueError("`losses` must have a row for each path and a column for each sparsity")
            losses = np.array(rows, np.float64).reshape(len(paths), len(grid))
            return cls(paths, grid, losses, float(fields["dense"]), units, weights, others)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
            raise ValueError(f"`text` is not a {_FORMAT!r} table: {error}.") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json()` to a file. An existing file is replaced once the new one is complete."""
        write_whole(path, lambda file: file.write(self.to_json().encode()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Reads a file that `save` wrote.

        Raises:
          ValueError: if the file is not such a table; the message names the file.
        """
        with open(path, "rb") as file:
            content = file.read()
        try:
            return cls.from_json(content.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r} is not a {_FORMAT!r} file: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a path")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a number of units")
    return value


def sensitivity(
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    batch: Any,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    score: Callable[[PyTree], PyTree] | PyTree = magnitude,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    chunk: int = 1,
) -> Sensitivity:
    """The loss when one layer at a time is pruned to each sparsity.

    With `structure=jp.Coupled(groups)` a layer is a group: all its members lose the same units, and the table has
    its name and the number of weights that its units hold.

    One program is compiled; the layer and the number of its units to prune are arguments of it.

    Args:
      loss_fn: (params, batch) -> scalar.
      params: pytree of arrays: the trained network.
      batch: pytree of arrays on which the loss is measured; better not data that the network was trained on.
      sparsities: grid of fractions of the units of a layer, each in (0, 1).
      score: params -> scores, larger = keep, or a tree of such scores.
      structure, where: as for `make_masks`.
      chunk: number of sparsities to evaluate at once (by `vmap`). Memory grows in proportion. It is faster on an
        accelerator; convolutions on a CPU are faster one by one.

    Returns:
      A `Sensitivity`, for `jp.allocate.from_sensitivity` and `jaxprune.plots.plot_sensitivity`.

    Raises:
      ValueError: as `make_masks` does; if the grid is outside (0, 1) or beyond the sparsity of an N:M pattern; if
        the loss is not a scalar, or is not finite with nothing pruned.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, 2.0]]), "c": jnp.array([[3.0, 10.0]])}
      >>> print(jp.sensitivity(lambda p, x: x * (13 - p["a"].sum() - p["c"].sum()), params, 1.0, [0.5]))
      layer            weights   loss at 0   0.5
      ──────────────────────────────────────────
      a                      2                -2
      c                      2                 0
      ──────────────────────────────────────────
      nothing pruned         4          -3

    References:
      Li et al., Pruning Filters for Efficient ConvNets, 2016, arXiv:1608.08710.
    """
    criterion = Criterion(structure, where=where)
    grid = _checked_grid(sparsities, structure)
    check_whole(chunk=chunk)
    whole = criterion.units(params)
    leaves, chosen = whole.leaves, whole.chosen
    by_leaf = len(whole.cut.names) == len(chosen) and is_by_leaf(structure)
    layers = [criterion.units(params, [i]) for i in chosen] if by_leaf else []  # each leaf by itself
    scores = (
        jax.tree.leaves(call_score(score, params, None))
        if callable(score)
        else aligned(params, score, "score")
    )
    floats, join = split_floats(params)
    loss = checked_loss(loss_fn, join)
    position = {i: n for n, i in enumerate(i for i, leaf in enumerate(leaves) if is_float_array(leaf.value))}

    @jax.jit
    def losses_at(
        floats: list[jax.Array], scores: list[jax.Array], batch: Any, layer: jax.Array, counts: Any
    ):
        def loss_after(count: Any) -> jax.Array:
            pruned = list(floats)
            if not by_leaf:
                each = [_where(layer == n, count) for n in range(len(units))]
                masks, _ = keep_masks(whole.cut, scores, each, least=whole.least)
                for i, mask in zip(chosen, masks, strict=True):
                    if i in position:
                        pruned[position[i]] = jnp.where(mask, floats[position[i]], 0)
                return loss(pruned, batch)
            for n, i in enumerate(chosen):

                def prune(w: jax.Array, n: int = n) -> jax.Array:
                    (mask,), _ = keep_masks(layers[n].cut, [scores[n]], count)
                    return jnp.where(mask, w, 0)

                at = position[i]
                pruned[at] = jax.lax.cond(layer == n, prune, lambda w: w, floats[at])
            return loss(pruned, batch)

        if chunk == 1:  # without an axis of length 1, which would make grouped convolutions of all
            return loss_after(jax.tree.map(lambda x: x[0], counts))[None]
        return jax.vmap(loss_after)(counts)

    chosen_scores = [jnp.asarray(scores[i]) for i in chosen]

    def evaluate(layer: int, counts: list[int]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(counts), chunk):
            part = counts[start : start + chunk]
            padded = counts_of_rounds([*part, *[0] * (chunk - len(part))])
            values = losses_at(floats, chosen_scores, batch, jnp.int32(layer), padded)
            found += [float(value) for value in values[: len(part)]]
        return found

    units = [sum(layer.numbers) for layer in layers] if by_leaf else whole.numbers
    (dense,) = evaluate(-1, [0])
    if not math.isfinite(dense):
        raise ValueError(f"`loss_fn` must be finite with nothing pruned, got {dense}.")
    rows = [evaluate(n, [int(count_to_prune(s, units[n])) for s in grid]) for n in range(len(units))]
    losses = np.array(rows, np.float64)
    if not by_leaf:
        weights = _weights(whole.cut, [tuple(leaves[i].value.shape) for i in chosen])
        return Sensitivity(whole.cut.names, grid, losses, dense, tuple(units), weights)
    return Sensitivity(
        tuple(whole.paths),
        grid,
        losses,
        dense,
        tuple(units),
        tuple(math.prod(leaves[i].value.shape) for i in chosen),
        tuple(leaf.path for i, leaf in enumerate(leaves) if i not in chosen),
        jax.tree.unflatten(jax.tree.structure(params), [leaf.path for leaf in leaves]),
    )


def _where(is_layer: jax.Array, count: Count) -> Count:
    """The count for the layer that is pruned, 0 for the others."""
    return Count(*(jnp.where(is_layer, word, 0) for word in count))


def _weights(cut: Cut, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Number of weights that units of each array hold: those that are pruned if all of them are."""
    found = []
    for number in range(len(cut.shapes)):
        kept: list[Any] = [np.full(shape, i != number) for i, shape in enumerate(cut.shapes)]
        pairs = zip(cut.masks(kept), shapes, strict=True)
        found.append(sum(math.prod(shape) - int(np.broadcast_to(m, shape).sum()) for m, shape in pairs))
    return tuple(found)


def _checked_grid(sparsities: Sequence[float], structure: Structure) -> tuple[float, ...]:
    if not all(isinstance(s, numbers.Real) and 0 < s < 1 for s in sparsities) or not len(sparsities):
        raise ValueError(f"`sparsities` must be numbers in (0, 1), got {sparsities!r}. They are fractions.")
    grid = tuple(sorted({float(s) for s in sparsities}))
    check_limit("sparsities", grid[-1], structure)
    return grid
