"""Weights on their way from dense to pruned, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.keep import check_structure, n_units
from jaxprune.calibration.least_squares import errors
from jaxprune.calibration.model import Model
from jaxprune.calibration.moments import Kind, Moments, moments_of
from jaxprune.calibration.program import Program, Use
from jaxprune.calibration.view import Matrix
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.selection import count_to_prune
from jaxprune.structures import Structure

_FLOOR = 1e-3  # of the mean: what an output that the loss doesn't mind counts


class Method(Protocol):
    """How the weights of one matrix (inputs, outputs) are pruned, given X^T X of its inputs.

    `moments` says whether the diagonal of X^T X is enough: it may then be all that there is.
    """

    moments: ClassVar[Kind]

    def check(self, structure: Structure) -> None:
        """Raises for a structure that the method can't do."""
        ...

    def factorize(self, gram: jax.Array) -> Any:
        """What all weights of the same inputs share."""
        ...

    def solve(
        self, w: jax.Array, gram: jax.Array, factor: Any, n_pruned: Any, structure: Structure
    ) -> tuple[jax.Array, jax.Array]:
        """Pruned weights and their mask; `n_pruned` counts units of `structure`."""
        ...


class Refinement(Protocol):
    """How pruned weights and their mask are made better, given X^T X."""

    def refine(
        self, w0: jax.Array, gram: jax.Array, w: jax.Array, mask: jax.Array, structure: Structure
    ) -> tuple[jax.Array, jax.Array]:
        """Weights and mask whose error on X^T X is no larger."""
        ...


class LayerResult(NamedTuple):
    """How well one matrix was pruned: `error` is ||X W - target||^2 / ||target||^2 on the layer's own inputs."""

    path: str
    error: float
    sparsity: float


# (use, dense matrices, X^T X, what the uses of these inputs share) -> pruned matrices and masks.
Start = Callable[[Use, jax.Array, jax.Array, dict[str, Any]], tuple[jax.Array, jax.Array]]


class Layers:
    """Host copies of the weights, their masks, and which of their entries are done."""

    def __init__(self, model: Model, structure: Structure, fisher: dict[int, np.ndarray] | None = None):
        self.model, self.structure = model, structure
        self._fisher = fisher or {}
        leaves = {use.leaf for use in model.program.uses}
        self.weights = {leaf: np.array(model.values[leaf]) for leaf in leaves}
        self.masks = {leaf: np.ones(w.shape, bool) for leaf, w in self.weights.items()}
        self._done = {leaf: np.zeros(w.shape, bool) for leaf, w in self.weights.items()}
        for use in model.program.uses:
            _, inputs, outputs = use.matrix.shape
            innermost = use.matrix.inputs[-1][0] if use.matrix.inputs else 1
            check_structure(structure, model.paths[use.leaf], (inputs, outputs), innermost)

    def prune(
        self,
        uses: Sequence[Use],
        gram: jax.Array,
        targets: dict[Use, Callable[[jax.Array], jax.Array]],
        start: Start,
        refine: Sequence[Refinement],
        on_layer: Callable[[LayerResult], None] | None,
    ) -> dict[int, Any]:
        """Prunes the weights of one site, but for those done before; returns the parameters that changed.

        `targets` turn a weight's dense matrices into those to come near to.
        """
        shared: dict[str, Any] = {}
        changed = {}
        for use in uses:
            if use.matrix.of(self._done[use.leaf]).any():
                continue
            w0 = jnp.asarray(use.matrix.of(self.weights[use.leaf]), jnp.float32)
            scale = self._scale_of_outputs(use, w0, gram)
            if use in targets:
                w0 = targets[use](w0)
            w0 = w0 * scale
            w, mask = start(use, w0, gram, shared)
            for refinement in refine:
                w, mask = over_groups(
                    lambda *each, by=refinement: by.refine(*each, structure=self.structure)
                )(w0, gram, w, mask)
            w, w0 = w / scale, w0 / scale
            self._write(use, w, mask)
            value = self.model.values[use.leaf]
            changed[use.leaf] = jax.device_put(self.weights[use.leaf].copy(), value.sharding)
            if on_layer is not None:
                on_layer(LayerResult(self.model.paths[use.leaf], *_quality(w0, gram, w, mask)))
        return changed

    def result(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """`params` with the pruned weights, and their masks."""
        paths, leaves, treedef = flatten_with_paths(params)
        position = {path: leaf for leaf, path in enumerate(self.model.paths)}
        new, masks = list(leaves), [True] * len(leaves)
        for i, path in enumerate(paths):
            leaf = position.get(path)
            if leaf in self.weights:
                sharding = self.model.values[leaf].sharding
                new[i] = jax.device_put(self.weights[leaf], sharding)
                masks[i] = jax.device_put(self.masks[leaf], sharding)
        return jax.tree.unflatten(treedef, new), jax.tree.unflatten(treedef, masks)

    def _scale_of_outputs(self, use: Use, w0: jax.Array, gram: jax.Array) -> Any:
        """Root of how much an error of each output counts, (groups, 1, outputs); 1 where all count alike."""
        if use.leaf not in self._fisher:
            return jnp.ones((), jnp.float32)
        fisher = jnp.asarray(use.matrix.of(self._fisher[use.leaf]), jnp.float32)
        return _scale_of_outputs(fisher, w0, gram)

    def _write(self, use: Use, w: jax.Array, mask: jax.Array) -> None:
        weights = self.weights[use.leaf]
        use.matrix.put(weights, np.asarray(w.astype(weights.dtype)))
        use.matrix.put(self.masks[use.leaf], mask)
        use.matrix.put(self._done[use.leaf], np.ones(use.matrix.shape, bool))


def by_method(method: Method, counts: dict[tuple[int, Matrix], np.ndarray], structure: Structure) -> Start:
    """Starts from what a method gives."""

    def start(use, w0, gram, shared):
        if "factor" not in shared:
            shared["factor"] = over_groups(method.factorize)(gram)

        def solve(w, gram, factor, n_pruned):
            return method.solve(w, gram, factor, n_pruned, structure)

        return over_groups(solve)(w0, gram, shared["factor"], jnp.asarray(counts[use.leaf, use.matrix]))

    return start


def over_groups(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` on each group; a single one is not mapped over, which compiles to better code."""

    def apply(*args: Any) -> Any:
        if jax.tree.leaves(args)[0].shape[0] != 1:
            return jax.vmap(fn)(*args)
        first = jax.tree.map(lambda x: x[0], args)
        return jax.tree.map(lambda x: x[None], fn(*first))

    return apply


def counts_of(
    program: Program, shares: dict[int, float], structure: Structure
) -> dict[tuple[int, Matrix], np.ndarray]:
    """Units to prune in each group of each matrix: round(share * units) over all those of a parameter."""
    matrices: dict[int, list[Matrix]] = {}
    for use in program.uses:
        mine = matrices.setdefault(use.leaf, [])
        if use.matrix not in mine and not any(_same_entries(use.matrix, other) for other in mine):
            mine.append(use.matrix)
    counts = {}
    for leaf, mine in matrices.items():
        sizes = [n_units(structure, m.shape[1:]) for m in mine for _ in range(m.shape[0])]
        ends = np.cumsum(sizes)
        total = int(count_to_prune(shares[leaf], int(ends[-1])))
        up_to = [total * int(end) // int(ends[-1]) for end in ends]
        each = iter(np.diff([0, *up_to]))
        for m in mine:
            counts[leaf, m] = np.array([next(each) for _ in range(m.shape[0])], np.int32)
    return counts


def _same_entries(a: Matrix, b: Matrix) -> bool:
    """Whether two matrices hold the same entries, in whatever order."""
    return a.offset == b.offset and sorted(a.groups + a.inputs + a.outputs) == sorted(
        b.groups + b.inputs + b.outputs
    )


def shared_moments(model: Model) -> dict[tuple[int, Matrix], Moments]:
    """Moments in the dense model of the weights that are used more than once: of all their uses together."""
    uses = [(use.leaf, use.matrix) for use in model.program.uses]
    again = {key for key in uses if uses.count(key) > 1} if len(set(uses)) < len(uses) else set()
    found: dict[tuple[int, Matrix], Moments] = {}
    if again:
        for site in model.stream():
            mine = [use for use in site.uses if (use.leaf, use.matrix) in again]
            if mine:
                moments, _ = moments_of(site.activations, mine[0].rows, "full", model.row_weights)
                for use in mine:
                    key = use.leaf, use.matrix
                    found[key] = found[key] + moments if key in found else moments
    return found


@jax.jit
def _scale_of_outputs(fisher: jax.Array, w0: jax.Array, gram: jax.Array) -> jax.Array:
    diagonal = gram if gram.ndim == 2 else jnp.diagonal(gram, axis1=1, axis2=2)
    squares = jnp.square(w0) * diagonal[:, :, None]
    inputs = jnp.sum(squares, axis=1, keepdims=True)
    minded = jnp.where(inputs > 0, jnp.sum(fisher, axis=1, keepdims=True) / jnp.maximum(inputs, 1e-38), 0.0)
    mean = jnp.mean(minded)
    return jnp.where(mean > 0, jnp.sqrt(minded / jnp.maximum(mean, 1e-38) + _FLOOR), 1.0)


@jax.jit
def _relative_error(w0: jax.Array, gram: jax.Array, w: jax.Array) -> jax.Array:
    of = jax.vmap(errors)
    before = jnp.sum(of(w0, gram, jnp.zeros_like(w0)))
    return jnp.sum(of(w0, gram, w)) / jnp.where(before > 0, before, 1.0)


def _quality(w0: jax.Array, gram: jax.Array, w: jax.Array, mask: jax.Array) -> tuple[float, float]:
    return float(_relative_error(w0, gram, w)), 1 - float(jnp.mean(mask))
