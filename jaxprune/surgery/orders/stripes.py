"""Stripes: the m neighbouring inputs of a weight that an N:M pattern compares, where they are units of one group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.jaxprs.program import Use
from jaxprune.jaxprs.views import Factors, Matrix
from jaxprune.surgery.inference.axes import Atom, Axes, leaves_of, size_of
from jaxprune.surgery.inference.kept import slices


class Product(NamedTuple):
    """The matrices of a weight that a function multiplies by; `innermost` inputs are neighbours in memory."""

    path: str
    shape: tuple[int, ...]
    matrix: Matrix
    innermost: int


class Stripes(NamedTuple):
    """The stripes of a group in one product.

    starts: units at which stripes begin: (stripes,). inputs: the input that is each unit of these stripes, of
    shape (stripes * m, places), for each matrix of the product; a unit is one input in each place.
    """

    product: Product
    starts: tuple[int, ...]
    inputs: tuple[np.ndarray, ...]

    @property
    def columns(self) -> int:
        """The number of weights of a unit in stripes."""
        return sum(inputs.shape[1] for inputs in self.inputs) * self.product.matrix.shape[2]

    def rows(self, scores: np.ndarray) -> list[np.ndarray]:
        """The scores of the weights of each unit, (units of stripes, columns), in parts."""
        matrices = self.product.matrix.of(scores)
        return [
            matrix[inputs].reshape(len(inputs), -1)
            for matrix, inputs in zip(matrices, self.inputs, strict=True)
            if inputs.size
        ]


def products_of(
    uses: Iterable[Use], paths: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> list[Product]:
    """The different products by parameters."""
    found = {}
    for use in uses:
        found[use.leaf, use.matrix] = Product(paths[use.leaf], shapes[use.leaf], use.matrix, use.innermost)
    return list(found.values())


def stripes_of(
    atom: Atom, axes: Mapping[str, Axes], products: Iterable[Product], m: int
) -> tuple[list[Stripes], list[Product]]:
    """The stripes of a group in all products, which begin at the same units, and the products that sum over it.

    Where products disagree, because the units of one of them begin within a stripe, those with most weights count.
    """
    found: dict[tuple[int, ...], list[Stripes]] = {}
    sums = []
    for product in products:
        labels = None if product.innermost % m else _labels(axes[product.path], atom, product)
        if labels is not None:
            sums.append(product)
            for stripes in _stripes(product, labels, m):
                found.setdefault(stripes.starts, []).append(stripes)

    def weights(stripes: list[Stripes]) -> int:
        return sum(s.columns * len(s.starts) for s in stripes)

    return max(found.values(), key=weights, default=[]), sums


def _stripes(product: Product, labels: np.ndarray, m: int) -> list[Stripes]:
    """The stripes that consist of m neighbouring units: one `Stripes` for each set of units that they begin at."""
    none = np.zeros((0, 0), int)
    places: dict[tuple[int, ...], list[np.ndarray]] = {}
    for number, of_inputs in enumerate(labels):
        of_stripes = of_inputs.reshape(-1, m)
        whole = (of_stripes[:, :1] >= 0).all(1) & (of_stripes == of_stripes[:, :1] + np.arange(m)).all(1)
        at = np.flatnonzero(whole)
        first = of_stripes[at, 0]
        # The k-th stripe of each unit belongs to the k-th place.
        order = np.argsort(first, kind="stable")
        at, first = at[order], first[order]
        starts, counts = np.unique(first, return_counts=True)
        if not len(starts) or counts.min() != counts.max() or (np.diff(starts) < m).any():
            continue
        of_place = at.reshape(len(starts), -1)
        inputs = (of_place[:, None, :] * m + np.arange(m)[:, None]).reshape(len(starts) * m, -1)
        places.setdefault(tuple(starts.tolist()), [none] * len(labels))[number] = inputs
    return [Stripes(product, starts, tuple(inputs)) for starts, inputs in places.items()]


def _labels(axes: Axes, atom: Atom, product: Product) -> np.ndarray | None:
    """The unit of each input of each matrix, (matrices, inputs), or -1; None if the product sums over no units."""
    matrix = product.matrix
    first = matrix.offset + _places(matrix.groups)[:, None]
    inputs, outputs = first + _places(matrix.inputs), first + _places(matrix.outputs)
    labels = np.full(inputs.shape, -1)
    for dim, axis in enumerate(axes):
        if not any(leaf is atom for leaf in leaves_of(axis)):
            continue
        along = np.full(size_of(axis), -1)
        for block in slices(axis, np.arange(len(along)), atom):
            along[block] = np.arange(atom.size)[:, None]
        stride = math.prod(product.shape[dim + 1 :])
        of_inputs, of_outputs = (along[at // stride % len(along)] for at in (inputs, outputs))
        # Units of the outputs, or of whole matrices (in a depthwise convolution), are not summed over here.
        runs = (of_inputs != of_inputs[:, :1]).any(1) & (of_outputs == of_outputs[:, :1]).all(1)
        labels[runs] = np.maximum(labels[runs], of_inputs[runs])
    return None if (labels < 0).all() else labels


def _places(factors: Factors) -> np.ndarray:
    """The places in a parameter of the entries of some factors, in their order."""
    places = np.zeros(1, int)
    for size, stride in factors:
        places = (places[:, None] + np.arange(size) * stride).ravel()
    return places
