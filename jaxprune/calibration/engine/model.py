"""A model and its calibration batches: checks, and the stream of its activations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.jaxprs import is_array_leaf, trace
from jaxprune.jaxprs.program import Program, flatten
from jaxprune.jaxprs.stream import Site, Stream
from jaxprune.jaxprs.views import Matrix
from jaxprune.params import PyTree, flatten_with_paths, prunable_leaves
from jaxprune.progress import steps_bar
from jaxprune.statistics.moments import Kind, Moments, moments_of

RowWeights = Callable[..., Any]


class CalibrationModel(NamedTuple):
    """A traced function, its weights and the batches to send through it."""

    program: Program
    paths: list[str]  # of the parameter arrays
    values: list[Any]  # of the parameter arrays
    batches: list[list[Any]]
    row_weights: list[Any]  # one array or None per batch
    lost: list[str]  # weights that multiply no activations

    def stream(self, wanted: Sequence[int] = ()) -> Stream:
        return Stream(self.program, self.values, self.batches, wanted)

    def with_values(self, params: PyTree) -> CalibrationModel:
        """The same model with other values of its parameters."""
        return self._replace(
            values=[jnp.asarray(leaf) for leaf in jax.tree.leaves(params) if is_array_leaf(leaf)]
        )

    def moments(self, site: Site, kind: Kind) -> tuple[Moments, bool]:
        """The checked moments of a site's inputs, and whether the row weights fit them."""
        moments, fit = moments_of(site.activations, site.uses[0].rows, kind, self.row_weights)
        path = self.paths[site.uses[0].leaf]
        if not np.isfinite(moments.squares).all():
            raise ValueError(
                f"`batches` must give finite inputs to every weight, got NaN or infinite inputs at {path!r}."
            )
        if not float(moments.total) > 0:
            given = "`batches`" if self.row_weights[0] is None else "`row_weights`"
            raise ValueError(
                f"{given} must give every weight at least one row that counts, got none at {path!r}."
            )
        return moments, fit


def open_model(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    where: PyTree | None,
    row_weights: RowWeights | None,
    named: bool | None = None,
) -> CalibrationModel:
    """Traces `fn`, finds the products by the parameters of `where`, and checks all arguments.

    It is an error if weights of `where` multiply no activations and were `named` (None: if `where` is given).
    """
    paths, leaves, _ = flatten_with_paths(params)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise TypeError(
            "`params` must be arrays, not tracers: call calibration outside `jit`, since it compiles its own pieces."
        )
    tracked = prunable_leaves(params, where)
    arrays = [i for i, leaf in enumerate(leaves) if is_array_leaf(leaf)]
    position = {leaf: n for n, leaf in enumerate(arrays)}
    inputs = inputs_of(batches, "pad it and pass `row_weights`")
    flat = [jax.tree.leaves(batch) for batch in inputs]
    traced = trace(fn, params, inputs[0])
    program = flatten(traced, {position[i] for i in tracked if leaves[i].size})
    found = {use.leaf for use in program.uses}
    lost = [paths[i] for i in tracked if leaves[i].size and position[i] not in found]
    if lost and ((where is not None if named is None else named) or not found):
        raise ValueError(
            f"`where` names {lost[0]!r}, but no matrix product or convolution of `fn` multiplies activations by it "
            f"({len(lost)} such weights of {len(tracked)}). Leave it out of `where`."
        )
    weights: list[Any] = [None] * len(inputs)
    if row_weights is not None:
        weights = [jnp.asarray(row_weights(*batch)) for batch in inputs]
    return CalibrationModel(
        program,
        [paths[i] for i in arrays],
        [jnp.asarray(leaves[i]) for i in arrays],
        [[x for x in batch if is_array_leaf(x)] for batch in flat],
        weights,
        lost,
    )


def inputs_of(
    batches: Iterable[Any], remedy: str = "fill it up with rows of another one"
) -> list[tuple[Any, ...]]:
    """The inputs of each batch, once it is checked that there are some, and that all have the same shapes.

    Args:
      batches: what a caller was given.
      remedy: what else than dropping a smaller batch the caller can be told.
    """
    inputs = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not inputs:
        raise ValueError(
            "`batches` must have at least one batch. A batch is a tuple of inputs, or one input."
        )
    _check_batches(inputs, [jax.tree.leaves(batch) for batch in inputs], remedy)
    return inputs


def shared_weights(model: CalibrationModel) -> set[tuple[int, Matrix]]:
    """Weights that are used more than once."""
    uses = [(use.leaf, use.matrix) for use in model.program.uses]
    return {key for key in uses if uses.count(key) > 1} if len(set(uses)) < len(uses) else set()


def shared_moments(
    model: CalibrationModel, again: Collection[tuple[int, Matrix]] | None = None
) -> dict[tuple[int, Matrix], Moments]:
    """Moments in the dense model, over all uses of each weight, of weights that are used more than once.

    Args:
      model: the model.
      again: which of them; None for all.
    """
    again = shared_weights(model) if again is None else again
    found: dict[tuple[int, Matrix], Moments] = {}
    if again:
        for site in model.stream():
            mine = [use for use in site.uses if (use.leaf, use.matrix) in again]
            if mine:
                moments, _ = model.moments(site, "full")
                for use in mine:
                    key = use.leaf, use.matrix
                    found[key] = found[key] + moments if key in found else moments
    return found


def with_progress(
    stream: Stream, progress: bool | None, label: str, told: Callable[[], Any] | None = None
) -> Iterator[Site]:
    """The sites of a stream, with a progress bar; `steps_bar` says what `progress` and `told` mean."""
    with steps_bar(label, len(stream.program.uses), progress, told) as advance:
        for site in stream:
            yield site
            advance((), len(site.uses))


def check_row_weights(weights: list[Any]) -> None:
    """Raises a ValueError if the row weights fitted no activations."""
    if weights[0] is not None:
        raise ValueError(
            f"`row_weights` returned an array of shape {weights[0].shape}, but the activations of no weight have this "
            "leading shape. Return one number per row, such as shape (batch, position)."
        )


def _check_batches(batches: list[tuple[Any, ...]], flat: list[list[Any]], remedy: str) -> None:
    first = jax.tree.structure(batches[0]), [_kind(x) for x in flat[0]]
    for i, (batch, leaves) in enumerate(zip(batches, flat, strict=True)):
        if (jax.tree.structure(batch), [_kind(x) for x in leaves]) != first:
            raise ValueError(
                f"`batches` must have the same structure, shapes and dtypes, got {[_kind(x) for x in leaves]} "
                f"in batch {i} after {first[1]}. Drop a smaller last batch, or {remedy}."
            )


def _kind(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x)
