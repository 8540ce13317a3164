"""What calibration asks of a structure: how it cuts one weight matrix of shape (inputs, outputs)."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from jaxprune.structures.structure import Cut, LeafStructure, Shape


@dataclasses.dataclass(frozen=True)
class MatrixUnits:
    """How the units of a structure lie in a matrix.

    Args:
      label: the structure, for error messages.
      inputs: how many neighbouring inputs a unit spans, or a group of weights of which some are kept.
      kept: weights kept in each such group, which alone decides how many are pruned; None where units are
        compared over the whole matrix.
      are_weights: whether a unit is a single weight.
    """

    label: str
    inputs: int
    kept: int | None
    are_weights: bool


class MatrixStructure(LeafStructure, Protocol):
    """A structure that cuts a weight matrix of shape (inputs, outputs) too."""

    def matrix_units(self) -> MatrixUnits:
        """How its units lie in a matrix.

        Raises:
          ValueError: it can't cut matrices.
        """
        ...

    def cut_matrix(self, shape: Shape) -> Cut:
        """The units of a matrix of this shape."""
        ...
