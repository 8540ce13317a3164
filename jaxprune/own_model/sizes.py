"""Parameters, bytes and FLOPs of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxprune.healing.arrays import split
from jaxprune.jaxprs.flops import total_flops
from jaxprune.params import PyTree


class Sizes(NamedTuple):
    """Entries of all parameters, their bytes, and the FLOPs of products at the example inputs."""

    parameters: int
    bytes: int
    flops: int


def sizes(fn: Callable[..., Any], params: PyTree, inputs: Sequence[Any]) -> Sizes:
    """The sizes of a model."""
    arrays, join = split(params)
    traced = jax.make_jaxpr(lambda arrays, inputs: fn(join(arrays), *inputs))(arrays, tuple(inputs))
    return Sizes(
        sum(math.prod(x.shape) for x in arrays),
        sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
        total_flops(traced.jaxpr),
    )


def short(number: float) -> str:
    """A number with three digits, as people say it.

    >>> short(22_713_216), short(950), short(1.5e12)
    ('22.7 M', '950', '1.50 T')
    """
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            digits = max(2 - int(math.log10(number / size) + 1e-12), 0)
            return f"{number / size:.{digits}f} {letter}"
    return f"{number:,}"
