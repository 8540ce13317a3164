"""The windows of a model while they are refitted, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class WindowResult(NamedTuple):
    """The result of refitting one window.

    path: the paths of its pruned weights; error, before: the squared error of its output after and before, relative
    to that of its branches being left out (to the squared output if nothing bypasses them); sparsity: fraction of
    the entries of these weights that are pruned.
    """

    path: str
    error: float
    sparsity: float
    before: float


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

    def refit_one(self, window: Window, stream: Stream, dense: Stream | None) -> WindowResult:
        """Refits a window; the stream gets its new parameters."""
        parts = [n for n, part in window.parts.items() if part.leaf in self._trained]
        run, sources, own = self._segment(window, parts)
        given = [stream.peek(n) for n in own]
        inputs = [list(values) for values in zip(*given, strict=True)]
        start = self._values(sources, parts, window, stream.param)
        targets, energy = self._targets(window, run, sources, parts, stream, inputs, dense)
        weights = [self._weights(w, t) for w, t in zip(self.row_weights, targets, strict=True)]
        before = self._error(window, stream, targets, weights)
        error = before
        if np.isfinite(before) and before > 0:
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
        return self._result(window, error, before, energy)

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

    def _targets(self, window, run, sources, parts, stream, inputs, dense) -> tuple[list[Any], float]:
        """The targets of each batch, and the squared error of leaving the branches out."""
        values = self._values(sources, parts, window, self.dense.__getitem__)
        n = len(window.outs)
        there = [dense.take(out) for out in window.outs] if dense is not None and self.strength else None
        targets, energy = [], 0.0
        for i, (each, w) in enumerate(zip(inputs, self.row_weights, strict=True)):
            outs = run(values, each)
            target = outs[:n]
            if there is not None:
                target = [_mixed(t, d[i], self.strength) for t, d in zip(target, there, strict=True)]
            targets.append(target)
            stays = outs[n:] or [jnp.zeros_like(t) for t in target]
            energy += float(squared_error(target, stays, self._weights(w, target)))
        return targets, energy

    def _weights(self, w: Any, target: Sequence[Any]) -> list[Any]:
        return [None if w is None else weights_of_entries(w, t.shape) for t in target]

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
