"""The masked model for training: masks may be traced, and gradients stay finite at pruned units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs.flops import PRODUCTS
from jaxprune.surgery.evaluation.interpreter import Masked
from jaxprune.surgery.evaluation.zeros import FROM_ZERO, Dims, Zeros, from_zero
from jaxprune.surgery.inference.axes import Axes
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.rules.rule import Reduction, one, zero

# Functions that have a pole or overflow, and operands at which they do not. The result at a pruned unit reaches no
# kept unit, but in the gradient 0 times inf would be NaN.
_HARMLESS: Mapping[str, tuple[tuple[int, Callable[[Any], Any]], ...]] = MappingProxyType(
    {
        **dict.fromkeys(("exp", "exp2", "cosh"), ((0, zero),)),
        **dict.fromkeys(("log", "rsqrt", "sqrt", "cbrt", "integer_pow", "acosh"), ((0, one),)),
        **dict.fromkeys(("lgamma", "digamma"), ((0, one),)),
        "div": ((1, one),),
        "pow": ((0, one), (1, one)),
    }
)


# These put an identity that may be infinite where all units before a pruned one are pruned.
_CUMULATIVE = frozenset(("cummax", "cummin", "cumlogsumexp"))


class MaskedTraining(Masked):
    """Evaluates the full arrays as `Masked` does, with harmless numbers at pruned units where poles are near.

    So numbers at pruned units are finite, and of a product's operands it is enough to mask the smaller one. No
    operand is masked that is zero there already.

    Args:
      keep: which units are kept.
      zeros: the values that are zero at pruned units.
    """

    def __init__(self, keep: Keep, zeros: Zeros):
        super().__init__(keep)
        self.zeros = zeros

    def reductions(
        self, frame: Frame, eqn: JaxprEqn, found: Sequence[Reduction], args: Sequence[Any]
    ) -> Sequence[Reduction]:
        zeros = [self._zeros(frame, eqn, reduction.operand) for reduction in found]
        if eqn.primitive.name in PRODUCTS:
            factors = [reduction for reduction in found if reduction.operand < 2]
            pairs = zip(*(reduction.dimensions for reduction in factors), strict=True)
            left = [i for i, (a, b) in enumerate(pairs) if a not in zeros[0] and b not in zeros[1]]
            smaller = min(factors[::-1], key=lambda reduction: args[reduction.operand].size)
            smaller = smaller._replace(dimensions=tuple(smaller.dimensions[i] for i in left))
            return [smaller, *(reduction for reduction in found if reduction.operand >= 2)]
        return [
            reduction._replace(dimensions=tuple(dim for dim in reduction.dimensions if dim not in known))
            if reduction.identity is zero
            else reduction
            for reduction, known in zip(found, zeros, strict=True)
        ]

    def equation(self, frame: Frame, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
        args = list(args)
        for place, harmless in _harmless(eqn):
            axes = frame.ins(eqn)[place]
            known = self._zeros(frame, eqn, place) if harmless is zero else frozenset()
            dims = self.zeros.pruned(axes) - known
            if dims:
                value = args[place]
                args[place] = jnp.where(self._kept(axes, dims), value, harmless(value.dtype))
        results = super().equation(frame, eqn, args)
        if eqn.primitive.name in _CUMULATIVE:
            axes = frame.of(eqn.outvars[0])
            kept = self._kept(axes, self.zeros.pruned(axes))
            results = [jnp.where(kept, x, jnp.zeros_like(x)) for x in results]
        return results

    def _zeros(self, frame: Frame, eqn: JaxprEqn, place: int) -> Dims:
        return self.zeros.of(frame, eqn.invars[place], frame.ins(eqn)[place])

    def _kept(self, axes: Axes, dims: Dims) -> Any:
        kept: Any = True
        for dim in sorted(dims):
            kept = kept & self.keep.mask(axes[dim]).reshape([-1 if d == dim else 1 for d in range(len(axes))])
        return kept


def _harmless(eqn: JaxprEqn) -> Sequence[tuple[int, Callable[[Any], Any]]]:
    if eqn.primitive.name in FROM_ZERO and from_zero(eqn):
        return ((0, zero),)
    return _HARMLESS.get(eqn.primitive.name, ())
