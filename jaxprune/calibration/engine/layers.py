"""The weights while they are pruned, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.engine.journal import Record
from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.calibration.engine.parts import Part
from jaxprune.calibration.engine.results import LayerResult
from jaxprune.calibration.methods.least_squares import errors
from jaxprune.calibration.methods.method import Method, Refinement, over_groups
from jaxprune.host import to_device
from jaxprune.jaxprs.program import Use
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.statistics.moments import Moments, safe_scale
from jaxprune.structures.matrix import MatrixStructure

_FLOOR = 1e-3  # of the mean: weight of an output to which the loss is not sensitive
_SMALLEST = np.finfo(np.float32).tiny


# (use, target matrices, X^T X, weights and masks so far, values shared by the uses of these inputs)
# -> pruned matrices and masks.
Pair = tuple[jax.Array, jax.Array]
Start = Callable[[Use, jax.Array, jax.Array, Pair, dict[str, Any]], Pair]


class LayerWeights:
    """Host copies of the weights, their masks, and which of their entries have been processed.

    Args:
      model: the dense model.
      structure: the structure of the masks.
      parts: the matrices to prune; None for all, and the first of those that overlap.
      fisher: scores of each leaf.
      before: leaf -> weights and mask to start from; other leaves start from the dense weights without a mask.
    """

    def __init__(
        self,
        model: CalibrationModel,
        structure: MatrixStructure,
        parts: Collection[Part] | None = None,
        fisher: dict[int, np.ndarray] | None = None,
        before: dict[int, tuple[np.ndarray, np.ndarray]] | None = None,
    ):
        self.model, self.structure = model, structure
        self._parts, self._fisher = parts, fisher or {}
        leaves = sorted({use.leaf for use in model.program.uses})
        self._dense = {leaf: np.asarray(model.values[leaf]) for leaf in leaves}
        for leaf, w in self._dense.items():
            if not np.isfinite(w).all():
                raise ValueError(
                    f"`params` must be finite, got NaN or infinite values at {model.paths[leaf]!r}."
                )
        start = before or {leaf: (w, np.ones(w.shape, bool)) for leaf, w in self._dense.items()}
        self.weights = {leaf: np.array(w) for leaf, (w, _) in start.items()}
        self.masks = {leaf: np.array(mask) for leaf, (_, mask) in start.items()}
        self._done = {leaf: np.zeros(w.shape, bool) for leaf, w in self._dense.items()}
        self._others: dict[int, Any] = {}  # parameters that are not pruned, but refitted
        self.unseen: dict[int, int] = {}  # weights of a leaf whose inputs are always 0
        # Product -> the weights of its outputs' errors, if there are Fisher scores.
        self.output_weights: dict[int, np.ndarray] = {}

    @np.errstate(all="ignore")  # what leaves the range of a dtype is infinite or 0 there, as on a device
    def prune(
        self,
        uses: Sequence[Use],
        moments: Moments,
        targets: dict[Use, Callable[[jax.Array], jax.Array]],
        start: Start,
        refine: Sequence[Refinement],
        on_layer: Callable[[LayerResult], None] | None,
    ) -> None:
        """Prunes the weights of one site that are not processed yet.

        `targets` are functions from the dense matrices of a weight to its target matrices.
        """
        shared: dict[str, Any] = {}
        xtx, unseen = moments.xtx(), int(np.count_nonzero(moments.unseen))
        for use in uses:
            if not self.is_open(use):
                continue
            self.unseen[use.leaf] = self.unseen.get(use.leaf, 0) + unseen * use.matrix.shape[2]
            w0 = use.matrix.of(self._dense[use.leaf]).astype(np.float32)
            size = safe_scale(np.max(np.abs(w0), initial=0))  # squares of the weights must fit float32 too
            # What is computed from the entries one by one stays with NumPy, which compiles nothing.
            w0 = w0 / size
            outputs = self._scale_of_outputs(use, w0, xtx)
            if use.out is not None and outputs.ndim and len(outputs) == 1:
                self.output_weights[use.out] = np.square(outputs).reshape(-1)
            if use in targets:
                w0 = np.asarray(targets[use](jax.device_put(w0 * size))) / size
            before = use.matrix.of(self.weights[use.leaf]).astype(np.float32) / size * outputs
            kept = use.matrix.of(self.masks[use.leaf])
            scaled = jax.device_put(w0 * outputs)
            w, mask = start(use, scaled, xtx, (jax.device_put(before), jax.device_put(kept)), shared)
            for refinement in refine:
                w, mask = over_groups(
                    lambda *each, by=refinement: by.refine(*each, structure=self.structure)
                )(scaled, xtx, w, mask)
            w, mask = np.asarray(w), np.asarray(mask)
            same = np.abs(w - before) < _SMALLEST  # the device may flush what is smaller to 0
            self._write(use, w / outputs * size, mask, same, np.asarray(diagonal_of(xtx)) == 0)
            if on_layer is not None:
                on_layer(LayerResult(self.model.paths[use.leaf], *_quality(w0, xtx, w / outputs, mask)))

    def arrays_of(self, uses: Sequence[Use]) -> list[np.ndarray]:
        """The matrices of some weights and their masks, for `put_back`."""
        return [
            array
            for use in uses
            for array in (
                use.matrix.of(self.weights[use.leaf]),
                np.packbits(use.matrix.of(self.masks[use.leaf])),
            )
        ]

    def put_back(self, uses: Sequence[Use], record: Record) -> None:
        """Takes weights that were pruned before."""
        for use, w, bits in zip(uses, record.arrays[::2], record.arrays[1::2], strict=True):
            use.matrix.put(self.weights[use.leaf], w.view(self.weights[use.leaf].dtype))
            mask = np.unpackbits(bits, count=w.size).astype(bool)
            use.matrix.put(self.masks[use.leaf], mask.reshape(w.shape))
            use.matrix.put(self._done[use.leaf], np.ones(w.shape, bool))
        for leaf, n in record.facts["unseen"]:
            self.unseen[leaf] = self.unseen.get(leaf, 0) + n
        for out, weights in record.facts["output_weights"]:
            self.output_weights[out] = np.array(weights, np.float32)

    def put(self, leaf: int, value: Any) -> None:
        """Takes a parameter whose kept entries, or all entries if it is not pruned, were refitted."""
        if leaf in self.weights:
            self.weights[leaf] = np.array(value)
        else:
            self._others[leaf] = value

    def result(self, params: PyTree, masks: PyTree | None = None) -> tuple[PyTree, PyTree]:
        """`params` and `masks` (None for the scalar True), with the pruned weights and their masks inserted."""
        paths, leaves, treedef = flatten_with_paths(params)
        position = {path: leaf for leaf, path in enumerate(self.model.paths)}
        new, all_masks = list(leaves), [True] * len(leaves) if masks is None else jax.tree.leaves(masks)
        for i, path in enumerate(paths):
            leaf = position.get(path)
            if leaf in self.weights:
                new[i] = to_device(self.weights[leaf], self.model.values[leaf])
                all_masks[i] = to_device(self.masks[leaf], self.model.values[leaf])
            elif leaf in self._others:
                new[i] = self._others[leaf]
        return jax.tree.unflatten(treedef, new), jax.tree.unflatten(treedef, all_masks)

    def is_open(self, use: Use) -> bool:
        """Whether a weight is to be pruned and was not yet."""
        if self._parts is not None and (use.leaf, use.matrix) not in self._parts:
            return False
        return not use.matrix.of(self._done[use.leaf]).any()

    def on_device(self, leaf: int) -> Any:
        """A weight as it is now, in the sharding of the dense one."""
        return to_device(self.weights[leaf].copy(), self.model.values[leaf])

    def _scale_of_outputs(self, use: Use, w0: np.ndarray, gram: jax.Array) -> np.ndarray:
        """Root of the weight of each output's error, (groups, 1, outputs); 1 if all outputs count equally."""
        if use.leaf not in self._fisher:
            return np.ones((), np.float32)
        fisher = jnp.asarray(use.matrix.of(self._fisher[use.leaf]), jnp.float32)
        return np.asarray(_scale_of_outputs(fisher, w0, gram))

    def _write(self, use: Use, w: np.ndarray, mask: np.ndarray, same: np.ndarray, unseen: np.ndarray) -> None:
        """Writes the new weights; kept weights that are the same, or have unseen inputs, keep their exact values."""
        weights, kept = self.weights[use.leaf], use.matrix.of(self.masks[use.leaf])
        old, dense = use.matrix.of(weights), use.matrix.of(self._dense[use.leaf])
        unseen = unseen[:, :, None]
        new = np.where(unseen, np.where(kept, old, dense), w.astype(weights.dtype))
        new = np.where(same & kept, old, new)
        use.matrix.put(weights, np.where(mask, new, np.zeros((), weights.dtype)))
        use.matrix.put(self.masks[use.leaf], mask)
        use.matrix.put(self._done[use.leaf], np.ones(use.matrix.shape, bool))


def by_method(method: Method, counts: dict[Part, np.ndarray], structure: MatrixStructure) -> Start:
    """Makes a start function that prunes with a method."""

    def start(use, w0, xtx, now, shared):
        del now
        if "factor" not in shared:
            shared["factor"] = over_groups(method.factorize)(xtx)

        def solve(w, xtx, factor, n_pruned):
            return method.solve(w, xtx, factor, n_pruned, structure)

        return over_groups(solve)(w0, xtx, shared["factor"], jnp.asarray(counts[use.leaf, use.matrix]))

    return start


@jax.jit
def diagonal_of(xtx: jax.Array) -> jax.Array:
    """The diagonal of X^T X, (groups, inputs); `xtx` may itself be only the diagonal."""
    return xtx if xtx.ndim == 2 else jnp.diagonal(xtx, axis1=1, axis2=2)


@jax.jit
def _scale_of_outputs(fisher: jax.Array, w0: jax.Array, gram: jax.Array) -> jax.Array:
    squares = jnp.square(w0) * diagonal_of(gram)[:, :, None]
    inputs = jnp.sum(squares, axis=1, keepdims=True)
    minded = jnp.where(inputs > 0, jnp.sum(fisher, axis=1, keepdims=True) / jnp.maximum(inputs, 1e-38), 0.0)
    mean = jnp.mean(minded)
    return jnp.where(mean > 0, jnp.sqrt(minded / jnp.maximum(mean, 1e-38) + _FLOOR), 1.0)


@jax.jit
def _relative_error(w0: jax.Array, gram: jax.Array, w: jax.Array) -> jax.Array:
    of = jax.vmap(errors)
    before = jnp.sum(of(w0, gram, jnp.zeros_like(w0)))
    return jnp.sum(of(w0, gram, w)) / jnp.where(before > 0, before, 1.0)


def _quality(w0: np.ndarray, gram: jax.Array, w: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    return float(_relative_error(w0, gram, w)), 1 - float(jnp.mean(mask))
