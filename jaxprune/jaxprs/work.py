"""How much a jaxpr computes: floating-point operations of products, and elements of everything else."""

from __future__ import annotations

import math
from typing import NamedTuple

from jax.extend.core import Jaxpr, JaxprEqn

from jaxprune.jaxprs.calls import bodies_of, kind_of
from jaxprune.jaxprs.equations import shape_of
from jaxprune.jaxprs.flops import PRODUCTS, call_flops, product_flops

# Elements of simple operations that take as long as one of these.
_SLOW = {
    **dict.fromkeys(("exp", "exp2", "log", "log1p", "expm1", "logistic", "tanh", "sin", "cos", "pow"), 8),
    **dict.fromkeys(("erf", "erfc", "erf_inv", "lgamma", "digamma"), 12),
    **dict.fromkeys(("sqrt", "rsqrt", "div", "cbrt"), 2),
}
# They are not computed, or are part of the operation that reads them.
_FREE = frozenset(
    (
        "reshape",
        "squeeze",
        "expand_dims",
        "broadcast_in_dim",
        "stop_gradient",
        "copy",
        "iota",
        "convert_element_type",
    )
)
_IN_PLACE = frozenset(("dynamic_update_slice", "scatter", "scatter-add", "scatter_add"))


class Work(NamedTuple):
    """What is to be computed.

    flops: floating-point operations of products and factorizations, two a multiply-add; elements: results of other
    operations, as many simple ones as take the same time.
    """

    flops: float = 0.0
    elements: float = 0.0

    def __add__(self, other: Work) -> Work:  # type: ignore[override]  (sums, not concatenation)
        return Work(self.flops + other.flops, self.elements + other.elements)

    def times(self, n: float) -> Work:
        """The same work, n times."""
        return Work(n * self.flops, n * self.elements)


def work_of(jaxpr: Jaxpr, trips: int = 1) -> Work:
    """The work of a jaxpr, that of the functions that it calls included.

    Args:
      jaxpr: the jaxpr.
      trips: number of iterations of a loop whose length is not known.
    """
    total = Work()
    for eqn in jaxpr.eqns:
        bodies = bodies_of(eqn)
        if bodies:
            found = Work(*call_flops(eqn, [list(work_of(body.jaxpr, trips)) for body in bodies]))
            total += found.times(trips) if kind_of(eqn) == "while" else found
        else:
            total += _of_equation(eqn)
    return total


def _of_equation(eqn: JaxprEqn) -> Work:
    name = eqn.primitive.name
    shapes = [shape_of(v) for v in eqn.invars]
    out = sum(math.prod(shape_of(v)) for v in eqn.outvars)
    if name in PRODUCTS:
        return Work(product_flops(eqn, shapes[0], shapes[1], shape_of(eqn.outvars[0])), out)
    if name == "cholesky":
        *batch, n, _ = shapes[0]
        return Work(math.prod(batch) * n**3 / 3)
    if name == "triangular_solve":
        return Work(math.prod(shapes[1]) * shapes[0][-1])
    if name in ("eigh", "svd", "qr", "lu"):
        *batch, n, m = shapes[0]
        return Work(math.prod(batch) * (9 if name in ("eigh", "svd") else 2) * n * m * min(n, m))
    if name in _FREE:
        return Work()
    if name in _IN_PLACE:
        return Work(0.0, math.prod(shapes[-1] if name != "dynamic_update_slice" else shapes[1]))
    if name == "sort":
        return Work(0.0, 4 * out * math.log2(max(shapes[0][-1], 2)))
    if name.startswith(("reduce_", "arg", "cum")):
        return Work(0.0, math.prod(shapes[0]))
    return Work(0.0, out * _SLOW.get(name, 1))
