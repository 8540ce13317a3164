"""Input statistics of weights, parameter by parameter."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs.views import Matrix
from jaxprune.statistics.moments import Moments


@dataclasses.dataclass(frozen=True)
class WeightStatistics:
    """Input statistics of one parameter, for each matrix that it holds (a stack of layers holds several).

    Attributes:
      shape: shape of the parameter.
      matrices: which entries of the parameter form (groups, inputs, outputs).
      moments: for the inputs of each matrix: number of rows, sums, X^T X or its diagonal.
    """

    shape: tuple[int, ...]
    matrices: tuple[Matrix, ...]
    moments: tuple[Moments, ...]

    @property
    def input_norms(self) -> np.ndarray:
        """||X_i||_2 of the input that each weight multiplies, in the shape of the parameter; float32."""
        squares = [np.asarray(m.norms, np.float64)[:, :, None] ** 2 for m in self.moments]
        return np.sqrt(self.spread(squares)).astype(np.float32)

    @property
    def input_means(self) -> np.ndarray:
        """Mean of the input that each weight multiplies, in the shape of the parameter; float32."""
        means = [np.asarray(m.sums * m.scale / m.total)[:, :, None] for m in self.moments]
        return self.spread(means).astype(np.float32)

    def output_moments(self, w: Any) -> list[tuple[Any, Any]]:
        """Mean and second moment of each output, (groups, outputs), for the value `w` of the parameter.

        Raises:
          ValueError: if the statistics hold only the diagonal.
        """
        found = []
        for matrix, m in zip(self.matrices, self.moments, strict=True):
            if not m.is_full:
                raise ValueError("output moments need X^T X: calibrate with `moments='full'`.")
            weights = jnp.asarray(matrix.of(np.asarray(w, np.float32))) * m.scale[:, :, None]
            mean = jnp.einsum("gi,gio->go", m.sums, weights, precision="highest")
            second = jnp.einsum("gio,gij,gjo->go", weights, m.second, weights, precision="highest")
            found.append((mean / m.total, second / m.total))
        return found

    def spread(self, values: list[Any]) -> np.ndarray:
        """Values that broadcast to (groups, inputs, outputs) of each matrix, summed in the shape of the parameter."""
        out = np.zeros(self.shape)
        for matrix, value in zip(self.matrices, values, strict=True):
            matrix.put(out, matrix.of(out) + value)
        return out


Statistics = dict[str, WeightStatistics]
