"""What calibration needs from a structure: how it cuts one weight matrix of shape (inputs, outputs)."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from jaxprune.structures.structure import Cut, LeafStructure, Shape


@dataclasses.dataclass(frozen=True)
class MatrixUnits:
    """How the units of a structure lie in a matrix.

    Args:
      label: the structure, for error messages.
      inputs: number of neighbouring inputs that a unit spans, or that an N:M group spans.
      kept: number of weights that are kept in each such group, which fixes the sparsity; None if units are
        ranked across the whole matrix.
      are_weights: whether a unit is a single weight.
    """

    label: str
    inputs: int
    kept: int | None
    are_weights: bool


class MatrixStructure(LeafStructure, Protocol):
    """A structure that can also cut a weight matrix of shape (inputs, outputs)."""

    def matrix_units(self) -> MatrixUnits:
        """How its units lie in a matrix.

        Raises:
          ValueError: if the structure can't cut matrices.
        """
        ...

    def cut_matrix(self, shape: Shape) -> Cut:
        """The units of a matrix of this shape."""
        ...
