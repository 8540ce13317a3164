"""Which structures fit the matrices (inputs, outputs) that a model multiplies by."""

from __future__ import annotations

from typing import Any

from jaxprune.jaxprs.program import Use
from jaxprune.structures import Structure
from jaxprune.structures.matrix import MatrixStructure


def check_structure(structure: Structure) -> MatrixStructure:
    """Returns the structure; raises an error if it can't cut matrices (inputs, outputs)."""
    if not hasattr(structure, "matrix_units"):
        raise TypeError(f"`structure` must be Unstructured(), NM(n, m) or Block((a, b)), got {structure!r}.")
    matrices: Any = structure
    matrices.matrix_units()
    return matrices


def fits(structure: MatrixStructure, use: Use) -> bool:
    """Whether a structure fits the weight of a product: an N:M group must not cross the end of an input axis."""
    units = structure.matrix_units()
    return units.kept is None or use.innermost % units.inputs == 0


def misfit(structure: MatrixStructure, path: str, use: Use) -> str:
    """The error message if N:M does not fit the weight of a product."""
    return (
        f"{structure.matrix_units().label}: `m` must divide the input axis, got {path!r} with "
        f"{use.innermost} (a matrix of {use.matrix.shape[1]} inputs). Leave it out of `where`."
    )
