"""How each primitive treats the axes of its operands; a primitive without a rule freezes all axes it touches."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxprune.surgery.inference.rules import (
    collectives,
    contractions,
    creation,
    effects,
    indexing,
    pointwise,
    reductions,
    shapes,
)
from jaxprune.surgery.inference.rules.creation import take_kept
from jaxprune.surgery.inference.rules.rule import Kept, Reduction, Rule

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **pointwise.RULES,
        **shapes.RULES,
        **contractions.RULES,
        **reductions.RULES,
        **indexing.RULES,
        **creation.RULES,
        **effects.RULES,
        **collectives.RULES,
    }
)

__all__ = ["RULES", "Kept", "Reduction", "Rule", "take_kept"]
