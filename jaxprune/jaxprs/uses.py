"""Uses of parameters in a flat program: products by a matrix, and other uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxprune.jaxprs.flops import PRODUCTS
from jaxprune.jaxprs.program import INDEX, Program, Step
from jaxprune.jaxprs.views import FOLLOWED

_PRODUCTS = PRODUCTS - {"ragged_dot_general"}  # whose rows are not the operand itself


def otherwise_used(program: Program, shapes: Sequence[tuple[int, ...]]) -> set[int]:
    """Parameters with entries that are used in more than one matrix, or in other operations as well.

    Args:
      program: the flat program.
      shapes: the shapes of its parameters.

    Returns:
      The parameters that are used as two matrices which share entries, by operations other than products, or as
      results.
    """
    readers: dict[int, list[Step]] = {}
    for step in program.steps:
        for number in step.ins:
            readers.setdefault(number, []).append(step)
    found = set()
    for leaf in {use.leaf for use in program.uses}:
        uses = [use for use in program.uses if use.leaf == leaf]
        times = np.zeros(shapes[leaf], np.int8)
        for matrix in {use.matrix for use in uses}:
            matrix.put(times, matrix.of(times) + 1)
        numbers = [program.params[leaf]]
        for number in numbers:  # the list grows in the loop
            for step in readers.get(number, ()):
                name = step.name
                if name in FOLLOWED or name == INDEX:
                    numbers.extend(step.outs)
                elif name not in _PRODUCTS or not any(use.x in step.ins for use in uses):
                    found.add(leaf)
        if times.max() > 1 or set(numbers) & set(program.outs):
            found.add(leaf)
    return found
