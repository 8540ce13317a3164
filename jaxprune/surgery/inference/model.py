"""A traced model with the axes of all its values, and the axes of its parameters by path."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.jaxprs import Traced, as_abstract, is_array_leaf, trace
from jaxprune.params import PyTree
from jaxprune.surgery.inference.analysis import infer
from jaxprune.surgery.inference.axes import Atom, Axes, Reason, freeze, unify
from jaxprune.surgery.inference.choices import settle_choices
from jaxprune.surgery.inference.frames import Frame, unknown
from jaxprune.surgery.inference.kept import Conflict, Keep, assign

State = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
KeptAxes = Mapping[str, tuple[np.ndarray | None, ...]]  # path -> mask of each axis, None = whole

OUTPUT_STATE = (
    " Where that output is a state that also comes in as parameters (BatchNorm statistics in training, a KV "
    "cache), pass `state=` to `find_groups`: it then loses the same units."
)


class Model(NamedTuple):
    """`frame` runs over (constants, parameters, inputs); `axes` are those of the parameters."""

    traced: Traced
    frame: Frame
    axes: dict[str, Axes]
    inputs: tuple[Any, ...]  # abstract
    chosen: Mapping[Atom, int]  # how many units a router chooses, where one does

    @property
    def of_params(self) -> list[bool]:
        """Which inputs of the frame are parameters."""
        first, last = len(self.traced.consts), len(self.traced.consts) + len(self.traced.paths)
        return [first <= i < last for i in range(len(self.frame.jaxpr.invars))]


def analyse(fn: Callable, params: PyTree, inputs: tuple[Any, ...], state: State | None = None) -> Model:
    """Traces the function and infers its axes; freezes those of inputs and outputs, except for a recurrent state."""
    traced = trace(fn, params, inputs)
    duplicates = (
        {path for path in traced.paths if traced.paths.count(path) > 1} if _repeats(traced.paths) else ()
    )
    if duplicates:
        raise ValueError(f"`params` has more than one array at the path {sorted(duplicates)[0]!r}.")
    n_consts, n_params = len(traced.consts), len(traced.paths)
    ins = [unknown(v.aval) for v in traced.jaxpr.invars]
    for name, axes in zip(traced.input_paths, ins[n_consts + n_params :], strict=True):
        for dim, axis in enumerate(axes):
            freeze(axis, Reason(f"axis {dim} of {name}"))
    frame = infer(traced.jaxpr, ins, constant=[partial(_itself, const) for const in traced.consts])
    param_axes = dict(zip(traced.paths, ins[n_consts : n_consts + n_params], strict=True))
    outs = frame.outs
    loose = _tie_state(state, params, traced, ins[n_consts : n_consts + n_params], outs) if state else ()
    for i, axes in enumerate(outs):
        if i not in loose:
            for dim, axis in enumerate(axes):
                freeze(
                    axis,
                    Reason(f"axis {dim} of output {i}" if len(outs) > 1 else f"axis {dim} of the output"),
                )
    abstract = jax.tree.map(lambda x: as_abstract(x) if is_array_leaf(x) else x, inputs)
    return Model(traced, frame, param_axes, abstract, settle_choices(frame))


def keep_of(model: Model, kept: KeptAxes) -> Keep:
    """The kept units of every axis of a model, given the kept units of its parameters.

    Raises:
      ValueError: if the model, at these shapes, does not allow this choice of units.
    """
    masks: dict[Any, np.ndarray] = {}
    for path, axes in model.axes.items():
        for dim, axis in enumerate(axes):
            mask = kept[path][dim]
            if mask is not None:
                try:
                    assign(axis, mask, masks)
                except Conflict as conflict:
                    hint = OUTPUT_STATE if re.search(r"\bof (the )?output\b", str(conflict)) else ""
                    raise ValueError(
                        f"the plan does not fit this function at {path!r}, axis {dim}: {conflict}.{hint}"
                    ) from None
    for atom, count in model.chosen.items():
        left = int(masks[atom].sum()) if atom in masks else count
        if left < count:
            raise ValueError(
                f"the plan does not fit this function: it keeps {left} of {atom.size} units of which "
                f"{count} are chosen (by an argmax or top_k at {atom.reached.where if atom.reached else 'a line'})."
            )
    keep = Keep(masks)
    for path, axes in model.axes.items():
        for dim, axis in enumerate(axes):
            mask = kept[path][dim]
            if not np.array_equal(keep.mask(axis), True if mask is None else mask) and not (
                mask is None and keep.mask(axis).all()
            ):
                raise ValueError(
                    f"the plan does not fit this function at {path!r}, axis {dim}: the units that it keeps there "
                    "differ from the units that the rest of the function keeps."
                )
    return keep


def _itself(value: Any) -> Any:
    return value


def _repeats(paths: list[str]) -> bool:
    return len(set(paths)) != len(paths)


def _tie_state(
    state: State, params: PyTree, traced: Traced, param_axes: list[Axes], outs: list[Axes]
) -> set[int]:
    """Unifies the axes of the state among the parameters with those of the state among the outputs."""
    leaves, treedef = jax.tree.flatten(params)
    numbers = iter(range(len(leaves)))
    numbered = jax.tree.unflatten(
        treedef, [next(numbers) if is_array_leaf(leaf) else leaf for leaf in leaves]
    )
    outputs = jax.tree.unflatten(traced.out_tree, range(len(outs)))
    try:
        state_in, state_out = state(numbered, outputs)
    except Exception as error:  # the user's function, on outputs that it may not be meant for
        raise ValueError(
            f"`state` can't be taken from the parameters and outputs of this function ({type(error).__name__}: "
            f"{error}). It must return (state in, state out). For a function that returns no state, such as "
            "the model in evaluation mode, use dataclasses.replace(plan, state=None)."
        ) from error
    ins, into = jax.tree.flatten(state_in)
    out, outof = jax.tree.flatten(state_out)
    if len(ins) != len(out):
        raise ValueError(
            "`state` must return two trees of the same leaves, the state in and the state out, "
            f"got {into} and {outof}."
        )
    for i, j in zip(ins, out, strict=True):
        if tuple(len(a) for a in (param_axes[i], outs[j])) != (len(outs[j]),) * 2:
            raise ValueError(f"`state` pairs {traced.paths[i]!r} with an output of another rank.")
        for a, b in zip(param_axes[i], outs[j], strict=True):
            unify(a, b, Reason("state in and state out"))
    return set(out)
