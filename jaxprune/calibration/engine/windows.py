"""The windows of a model while they are refitted, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.engine.journal import Journal, Record, window_name
from jaxprune.calibration.engine.results import WindowResult
from jaxprune.calibration.engine.training import Training, squared_error, train
from jaxprune.calibration.methods.refit import Refit
from jaxprune.host import beside
from jaxprune.jaxprs.program import Program
from jaxprune.jaxprs.rows import weights_of_entries
from jaxprune.jaxprs.stream import Stream, makers, segment
from jaxprune.jaxprs.windows import Part, Window, windows
from jaxprune.params import PyTree, Where, aligned, resolved
from jaxprune.tree_nodes import is_float_array, leaves_of
from jaxprune.weight_names import is_embedding, is_statistic, is_weight

_SUMS = ("add", "add_any", "convert_element_type")


class Windows:
    """Refits the windows of a program, in order.

    Args:
      program: the flat program.
      paths: of its parameters.
      dense: its dense parameters.
      masks: leaf -> mask of its pruned parameters, in their shapes.
      trained: leaves that may be trained.
      row_weights: an array or None for each batch.
      refit: the settings.
      strength: how far targets move to the dense model's outputs.
    """

    def __init__(
        self,
        program: Program,
        paths: Sequence[str],
        dense: Sequence[Any],
        masks: dict[int, np.ndarray],
        trained: set[int],
        row_weights: Sequence[Any],
        refit: Refit,
        strength: float,
    ):
        self.program, self.paths, self.dense, self.masks = program, paths, dense, masks
        self.row_weights, self.refit, self.strength = row_weights, refit, strength
        self.windows = [w for w in windows(program, refit.window) if self._is_worth_it(w, trained)]
        self._trained = trained
        self._maker = makers(program)

    def _is_worth_it(self, window: Window, trained: set[int]) -> bool:
        leaves = {part.leaf for part in window.parts.values()} & trained
        return bool(leaves) and (self.strength > 0 or bool(self._pruned(window)))

    def _pruned(self, window: Window) -> list[Part]:
        return [part for part in window.parts.values() if part.leaf in self.masks]

    @property
    def wanted(self) -> list[int]:
        """The values that the stream of the pruned model must keep for the windows."""
        return [n for w in self.windows for n in (*self._segment(w, ())[2], *w.outs)]

    @property
    def wanted_dense(self) -> list[int]:
        """The values that the stream of the dense model must keep for the windows."""
        return [n for w in self.windows for n in w.outs] if self.strength else []

    def _segment(self, window: Window, parts: Sequence[int]) -> Any:
        outs = window.outs if window.stream is None else (*window.outs, window.stream)
        return segment(self.program, self._maker, window.steps, outs, parts)

    def refit_one(
        self,
        number: int,
        stream: Stream,
        dense: Stream | None,
        journal: Journal | None = None,
        outputs: Mapping[int, np.ndarray] = MappingProxyType({}),
    ) -> WindowResult:
        """Refits a window; the stream gets its new parameters, which are read from the journal if it has them.

        `outputs` are weights of the errors of products' outputs: those of a window are weighed as the products are that
        add up to them.
        """
        window = self.windows[number]
        record = None if journal is None else journal.read(window_name(number))
        if record is not None:
            self._put_back(window, stream, dense, record)
            return record.rows[0]
        parts = self._parts_of(window)
        run, sources, own = self._segment(window, parts)
        given = [stream.peek(n) for n in own]
        inputs = [list(values) for values in zip(*given, strict=True)]
        start = self._values(sources, parts, window, stream.param)
        of_outs = [self._weights_of_out(window, out, outputs) for out in window.outs]
        targets, energy = self._targets(window, run, sources, parts, stream, inputs, dense, of_outs)
        weights = [_weights(w, t, of_outs) for w, t in zip(self.row_weights, targets, strict=True)]
        before = self._error(window, stream, targets, weights)
        error, trains = before, bool(np.isfinite(before) and before > 0)
        if trains:
            masks = [self._mask(window.parts[n]) for n in parts]
            optimizer, relative = self.refit.training()
            setting = Training(run, optimizer, relative, self.refit.steps, len(window.outs))
            scale = before / len(inputs)
            fixed, start = start[len(parts) :], start[: len(parts)]
            matrices = [w for w in (stream.param(p.leaf)[p.at] for p in window.parts.values()) if w.ndim > 1]
            new = train(setting, start, fixed, masks, inputs, targets, weights, scale, matrices)
            old = dict(zip(parts, start, strict=True))
            self._set(window, stream, dict(zip(parts, new, strict=True)))
            stream.redo(window.steps)
            error = self._error(window, stream, targets, weights)
            if not error < before:
                self._set(window, stream, old)
                stream.redo(window.steps)
                error = before
        for n in (*own, *window.outs):
            stream.release(n)
        result = self._result(window, error, before, energy)
        if journal is not None:
            values = [np.asarray(stream.param(p.leaf)[p.at]) for p in map(window.parts.__getitem__, parts)]
            journal.write(window_name(number), Record(values, {"trains": trains}, [result]))
        return result

    def _put_back(self, window: Window, stream: Stream, dense: Stream | None, record: Record) -> None:
        """Runs the streams as `refit_one` does, so that each value has the same bits, with the recorded parameters."""
        parts = self._parts_of(window)
        _, _, own = self._segment(window, parts)
        for n in own:
            stream.peek(n)
        if dense is not None and self.strength:
            for n in window.outs:
                dense.take(n)
        for n in window.outs:
            stream.peek(n)
        if record.facts["trains"]:
            values = [
                array.view(stream.param(window.parts[n].leaf).dtype)
                for n, array in zip(parts, record.arrays, strict=True)
            ]
            self._set(window, stream, dict(zip(parts, values, strict=True)))
            stream.redo(window.steps)
        for n in (*own, *window.outs):
            stream.release(n)

    def _parts_of(self, window: Window) -> list[int]:
        return [n for n, part in window.parts.items() if part.leaf in self._trained]

    def _values(
        self, sources: Sequence[int], parts: Sequence[int], window: Window, param: Callable[[int], Any]
    ) -> list[Any]:
        """The values of sources, given the parameters."""
        position = {number: leaf for leaf, number in enumerate(self.program.params)}
        found = []
        for n in sources:
            if n in parts:
                part = window.parts[n]
                found.append(param(part.leaf)[part.at])
            else:
                found.append(param(position[n]) if n in position else self.program.constants[n])
        return found

    def _targets(
        self, window, run, sources, parts, stream, inputs, dense, of_outs
    ) -> tuple[list[Any], float]:
        """The targets of each batch, and the squared error of leaving the branches out."""
        values = self._values(sources, parts, window, self.dense.__getitem__)
        n = len(window.outs)
        there = [dense.take(out) for out in window.outs] if dense is not None and self.strength else None
        whole = there is not None and self.strength == 1
        if whole:  # what the dense window makes of these inputs has no part in the targets
            n, bypass = 0, () if window.stream is None else (window.stream,)
            run, *_ = segment(self.program, self._maker, window.steps, bypass, parts)
        targets, energy = [], 0.0
        for i, (each, w) in enumerate(zip(inputs, self.row_weights, strict=True)):
            outs = run(values, each)
            if there is None:
                target = outs[:n]
            elif whole:
                target = [d[i] for d in there]
            else:
                target = [_mixed(t, d[i], self.strength) for t, d in zip(outs[:n], there, strict=True)]
            targets.append(target)
            stays = outs[n:] or [jnp.zeros_like(t) for t in target]
            energy += float(squared_error(target, stays, _weights(w, target, of_outs)))
        return targets, energy

    def _weights_of_out(self, window: Window, out: int, known: Mapping[int, np.ndarray]) -> Any:
        """The mean of the weights of the products in the window that add up to a value; None if there are none."""
        made = {n for i in window.steps for n in self.program.steps[i].outs}
        stack, terms = [out], []
        while stack:
            number = stack.pop()
            if number in made:
                terms.append(number)
                step = self.program.steps[self._maker[number]]
                stack.extend(step.ins if step.name in _SUMS else ())
        found = [known[n] for n in terms if n in known]
        return jnp.asarray(np.mean(found, axis=0)) if found else None

    def _error(self, window: Window, stream: Stream, targets: Sequence[Any], weights: Sequence[Any]) -> float:
        outs = zip(*[stream.peek(n) for n in window.outs], strict=True)
        return float(sum(squared_error(t, y, w) for t, y, w in zip(targets, outs, weights, strict=True)))

    def _mask(self, part: Part) -> Any:
        mask = self.masks.get(part.leaf)
        return None if mask is None else jnp.asarray(mask[part.at])

    def _set(self, window: Window, stream: Stream, new: dict[int, Any]) -> None:
        for n, value in new.items():
            leaf, at = window.parts[n]
            old = stream.param(leaf)
            value = jnp.asarray(value, old.dtype)
            stream.set_param(leaf, beside(old.at[at].set(value) if at else value, old))

    def _result(self, window: Window, error: float, before: float, energy: float) -> WindowResult:
        pruned = self._pruned(window)
        sizes = [(int(np.size(m)), int(np.sum(m))) for m in (self.masks[p.leaf][p.at] for p in pruned)]
        total, kept = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (1, 1)
        named = pruned or list(window.parts.values())
        path = ", ".join(self.paths[p.leaf] + "".join(f"[{i}]" for i in p.at) for p in named)
        scale = energy if energy > 0 else 1.0
        return WindowResult(path, error / scale, 1 - kept / max(total, 1), before / scale)


def _weights(rows: Any, target: Sequence[Any], of_outs: Sequence[Any]) -> list[Any]:
    """The weights of the entries of targets, given those of rows and of the last axis; None if all count equally."""
    found = []
    for t, w in zip(target, of_outs, strict=True):
        each = None if rows is None else weights_of_entries(rows, t.shape)
        if w is not None and t.shape[-1:] == w.shape:
            each = w if each is None else each * w
        found.append(each)
    return found


@jax.jit
def _mixed(here: jax.Array, there: jax.Array, strength: Any) -> jax.Array:
    return (here + strength * (there.astype(jnp.float32) - here)).astype(here.dtype)


def trainable(params: PyTree, where: Where, refit: Refit) -> list[bool]:
    """Which leaves may be trained: those of `where`, or all float arrays but embeddings and statistics."""
    leaves = leaves_of(params)
    if where is not None:
        flags = aligned(params, resolved(params, where, "where"), "where")
    else:
        flags = [not is_embedding(leaf.path) and not is_statistic(leaf.path) for leaf in leaves]
    flags = [bool(flag) and is_float_array(leaf.value) for flag, leaf in zip(flags, leaves, strict=True)]
    if not refit.weights:
        weights = are_weights(params)
        flags = [flag and not weight for flag, weight in zip(flags, weights, strict=True)]
    if not any(flags):
        raise ValueError(
            "there is nothing to train: no leaf is a float array that `where` selects"
            f"{'' if refit.weights else ' and no weight'}."
        )
    return flags


def are_weights(params: PyTree) -> list[bool]:
    """Which leaves are weights of linear maps, by their names and shapes."""
    leaves = leaves_of(params)
    by_path = {leaf.path: leaf for leaf in leaves}
    return [is_weight(leaf, by_path) for leaf in leaves]
