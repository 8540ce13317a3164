"""Which structures cut the matrices (inputs, outputs) that a model multiplies by."""

from __future__ import annotations

import math
from typing import Any

from jaxprune.jaxprs.program import Use
from jaxprune.jaxprs.rows import ConvRows
from jaxprune.structures import Structure
from jaxprune.structures.matrix import MatrixStructure


def check_structure(structure: Structure) -> MatrixStructure:
    """Raises for a structure that matrices (inputs, outputs) can't be cut by; returns it."""
    if not hasattr(structure, "matrix_units"):
        raise TypeError(f"`structure` must be Unstructured(), NM(n, m) or Block((a, b)), got {structure!r}.")
    matrices: Any = structure
    matrices.matrix_units()
    return matrices


def fits(structure: MatrixStructure, use: Use) -> bool:
    """Whether a structure cuts the weight of a product: N:M groups must not run across an input axis's ends."""
    units = structure.matrix_units()
    return units.kept is None or _innermost(use) % units.inputs == 0


def misfit(structure: MatrixStructure, path: str, use: Use) -> str:
    """Says that N:M does not fit the weight of a product."""
    return (
        f"{structure.matrix_units().label}: `m` must divide the input axis, got {path!r} with "
        f"{_innermost(use)} (a matrix of {use.matrix.shape[1]} inputs). Leave it out of `where`."
    )


def _innermost(use: Use) -> int:
    """Length of the axis that neighbouring inputs lie on: for a convolution its channels, of one group."""
    if isinstance(use.rows, ConvRows):
        return use.matrix.shape[1] // math.prod(use.rows.window)
    return use.matrix.inputs[-1][0] if use.matrix.inputs else 1
