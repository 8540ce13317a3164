"""Latency as a function of kept units: seconds for each kind of product, fitted to a few measured networks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from jaxprune.surgery import cost
from jaxprune.surgery.unit_cost import UnitCost
from jaxprune.targets.costs import Cost, weighted

_NOISE = 0.02  # of a measured latency
_OF_VALUES = 0.2  # of the latency is for other values than products, unless measurements say otherwise
_CONSTANT = "constant"

Seconds = Mapping[Hashable, float]  # a part of the model -> seconds for one of its FLOPs or entries


def fit(
    parts: Mapping[Hashable, UnitCost], kept: Sequence[Sequence[int]], measured: Sequence[float]
) -> Seconds:
    """The seconds that parts take, not negative, by regularized least squares.

    Where measurements don't tell parts apart, all FLOPs take the same time.

    Args:
      parts: what the model is made of.
      kept: for each measurement the kept counts, the full model first.
      measured: latencies.

    References:
      Lawson and Hanson, Solving Least Squares Problems, 1974 (non-negative least squares).
    """
    from scipy.optimize import nnls

    names = [*parts, _CONSTANT]
    whole = np.array([*(float(part.whole) for part in parts.values()), 1.0])
    whole[whole == 0] = 1.0
    rows = np.array([[*(float(part.known(list(k))) for part in parts.values()), 1.0] for k in kept]) / whole
    dense = measured[0]
    products = sum(n for name, n in zip(names, whole, strict=True) if name not in (cost.VALUES, _CONSTANT))
    of_products = 1 - _OF_VALUES if cost.VALUES in parts else 1.0
    expected = np.array(
        [
            0.0
            if name == _CONSTANT
            else _OF_VALUES * dense
            if name == cost.VALUES
            else of_products * dense * n / products
            for name, n in zip(names, whole, strict=True)
        ]
    )
    trust = 1 / (expected + 0.05 * dense)
    noise = 1 / (_NOISE * np.array(measured))
    matrix = np.concatenate([rows * noise[:, None], np.diag(trust)])
    values = np.concatenate([np.array(measured) * noise, expected * trust])
    found, _ = nnls(matrix, values)
    return dict(zip(names, found / whole, strict=True))


def latency_cost(sizes: Sequence[int], parts: Mapping[Hashable, UnitCost], seconds: Seconds) -> Cost:
    """The latency of a model of these parts; a part that was not measured costs nothing."""
    constant = UnitCost(tuple(sizes), ((),), (1,))
    return weighted(
        sizes,
        [
            *((seconds.get(name, 0.0), part) for name, part in parts.items()),
            (seconds.get(_CONSTANT, 0.0), constant),
        ],
    )
