"""Parts: the matrices that a parameter is pruned by, and how many units each of them loses."""

from __future__ import annotations

import numpy as np

from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.calibration.methods.keep import n_units
from jaxprune.jaxprs.views import Matrix
from jaxprune.selection import count_to_prune
from jaxprune.structures.matrix import MatrixStructure

Part = tuple[int, Matrix]


def parts_of(model: CalibrationModel) -> dict[int, list[Matrix]]:
    """For each parameter the matrices that hold each of its entries once, in the order of the program.

    A matrix whose entries another one holds too, such as a slice beside the whole, is left out.

    Raises:
      ValueError: matrices that overlap in part, or that leave entries out.
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
                "of their weights. Give the slices as parameters of their own, or leave it out of `where`."
            )
        matrix.put(taken, np.ones(matrix.shape, bool))
        chosen.append(matrix)
    if not taken.all():
        raise ValueError(
            f"`fn` multiplies activations by {int(taken.sum())} of the {taken.size} weights of {path!r} "
            "only, so that no share of the whole can be pruned. Give that part as a parameter of its own, "
            "or leave it out of `where`."
        )
    return [matrix for matrix in matrices if matrix in chosen]


def counts_of(
    parts: dict[int, list[Matrix]], shares: dict[int, float], structure: MatrixStructure
) -> dict[Part, np.ndarray]:
    """Units to prune in each group of each matrix: round(share * units) over all those of a parameter."""
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
