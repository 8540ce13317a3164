"""The masked model for training: masks may be traced, and gradients stay finite at pruned units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs.flops import PRODUCTS
from jaxprune.surgery.evaluation.interpreter import Masked
from jaxprune.surgery.inference.axes import Axes
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.rules.rule import Reduction, one, zero

# Functions that have a pole or overflow, and operands at which they do not. The result at a pruned unit reaches no
# kept unit, but in the gradient 0 times inf would be NaN.
_HARMLESS: Mapping[str, tuple[tuple[int, Callable[[Any], Any]], ...]] = MappingProxyType(
    {
        **dict.fromkeys(("exp", "exp2", "expm1", "sinh", "cosh", "tan", "atanh", "log1p"), ((0, zero),)),
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

    So numbers at pruned units are finite, and of a product's operands it is enough to mask the smaller one.
    """

    def reductions(
        self, eqn: JaxprEqn, found: Sequence[Reduction], args: Sequence[Any]
    ) -> Sequence[Reduction]:
        if eqn.primitive.name in PRODUCTS:
            factors = [reduction for reduction in found[::-1] if reduction.operand < 2]
            smaller = min(factors, key=lambda reduction: args[reduction.operand].size)
            return [smaller, *(reduction for reduction in found if reduction.operand >= 2)]
        return found

    def equation(self, frame: Frame, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
        args = list(args)
        for place, harmless in _HARMLESS.get(eqn.primitive.name, ()):
            axes = frame.ins(eqn)[place]
            if self.keep.cuts(axes):
                value = args[place]
                args[place] = jnp.where(self._kept(axes), value, harmless(value.dtype))
        results = super().equation(frame, eqn, args)
        if eqn.primitive.name in _CUMULATIVE:
            axes = frame.of(eqn.outvars[0])
            results = [jnp.where(self._kept(axes), x, jnp.zeros_like(x)) for x in results]
        return results

    def _kept(self, axes: Axes) -> Any:
        kept: Any = True
        for dim, axis in enumerate(axes):
            if self.keep.cuts([axis]):
                kept = kept & self.keep.mask(axis).reshape([-1 if d == dim else 1 for d in range(len(axes))])
        return kept
