"""Parts: the matrices in which a parameter is pruned, and the number of units that each of them loses."""

from __future__ import annotations

import numpy as np

from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.calibration.methods.keep import n_units
from jaxprune.jaxprs.views import Matrix
from jaxprune.selection import count_to_prune
from jaxprune.structures.matrix import MatrixStructure

Part = tuple[int, Matrix]


def parts_of(model: CalibrationModel) -> dict[int, list[Matrix]]:
    """For each parameter the matrices that together contain each of its entries once, in the order of the program.

    A matrix whose entries are all part of another one, such as a slice of the whole, is left out.

    Raises:
      ValueError: if matrices overlap in part, or do not contain all entries.
    """
    found: dict[int, dict[Matrix, None]] = {}
    for use in model.program.uses:
        found.setdefault(use.leaf, {})[use.matrix] = None
    return {leaf: _disjoint(model, leaf, list(matrices)) for leaf, matrices in found.items()}


def _disjoint(model: CalibrationModel, leaf: int, matrices: list[Matrix]) -> list[Matrix]:
    path, shape = model.paths[leaf], model.values[leaf].shape
    taken, chosen = np.zeros(shape, bool), []
    for matrix in sorted(matrices, key=lambda m: -np.prod(m.shape)):
        inside = matrix.of(taken)
        if inside.all():
            continue
        if inside.any():
            raise ValueError(
                f"the products of {path!r} overlap in part: `fn` multiplies by slices of it that share some "
                "of their weights. Make the slices separate parameters, or leave it out of `where`."
            )
        matrix.put(taken, np.ones(matrix.shape, bool))
        chosen.append(matrix)
    if not taken.all():
        raise ValueError(
            f"`fn` multiplies activations by only {int(taken.sum())} of the {taken.size} weights of {path!r}, "
            "so no fraction of the whole weight can be pruned. Make that part a separate parameter, "
            "or leave it out of `where`."
        )
    return [matrix for matrix in matrices if matrix in chosen]


def counts_of(
    parts: dict[int, list[Matrix]], shares: dict[int, float], structure: MatrixStructure
) -> dict[Part, np.ndarray]:
    """Number of units to prune in each group of each matrix: round(share * units) over all matrices of a parameter."""
    counts = {}
    for leaf, mine in parts.items():
        sizes = [n_units(structure, m.shape[1:]) for m in mine for _ in range(m.shape[0])]
        ends = np.cumsum(sizes)
        total = int(count_to_prune(shares[leaf], int(ends[-1])))
        up_to = [total * int(end) // int(ends[-1]) for end in ends]
        each = iter(np.diff([0, *up_to]))
        for m in mine:
            counts[leaf, m] = np.array([next(each) for _ in range(m.shape[0])], np.int32)
    return counts
