"""Windows: consecutive parts of a program, such as residual branches, each with the parameters that it alone reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxprune.jaxprs.flops import PRODUCTS
from jaxprune.jaxprs.program import INDEX, Program, Step

WindowSize = Literal["branch"] | int

# What these make carries none of their operands' entries on: a mask of attention is made so, and it enters each
# layer as a stream does.
_OF_MASKS = frozenset(("broadcast_in_dim", "eq", "ne", "ge", "gt", "le", "lt", "and", "or", "not"))
_SITES = 2  # inputs of weights in a window of a program without residual branches


class Part(NamedTuple):
    """A parameter, or the slice of it at these leading indices that one iteration of a scan reads."""

    leaf: int
    at: tuple[int, ...] = ()


class Window(NamedTuple):
    """Steps of a program whose results nothing earlier needs.

    outs: the values that it is there for; steps: positions of its steps, all of which depend on the inputs;
    parts: value -> the parameter, or the slice of one, that no other window reads; stream: the value that bypasses
    its branches, if there is one.
    """

    outs: tuple[int, ...]
    steps: tuple[int, ...]
    parts: dict[int, Part]
    stream: int | None


def windows(program: Program, size: WindowSize = "branch") -> list[Window]:
    """Cuts a program after every residual branch, or after `size` of them.

    A program without residual branches is cut before every second input of weights, or every `size`-th. The last
    window ends in the results. Steps after the last product by weights belong to no window.
    """
    finder = _Finder(program)
    ends, n = finder.sums(), 1
    if not ends:
        ends, n = finder.inputs(), _SITES
    found: list[tuple[tuple[int, ...], int]] = []
    taken, seen, count = 0, 0, 0
    size = n if size == "branch" else size
    results = tuple(out for out in dict.fromkeys(program.outs) if out in finder.before)
    for end in (*ends, None):
        outs = results if end is None else (end,)
        needed = _union(finder.before.get(out, 0) for out in outs)
        if needed & ~seen & finder.products:
            seen |= needed
            count += 1
            if count % size == 0:
                found.append((outs, needed & ~taken))
                taken |= needed
        if end is None and seen & ~taken & finder.products:
            found.append((outs, needed & ~taken))
    return finder.with_parts([(outs, _positions(steps)) for outs, steps in found])


def last_sites(program: Program, inputs: Sequence[Sequence[int]], found: Sequence[Window]) -> list[int]:
    """For each window the position in `inputs` of the last ones that its weights, or those of earlier windows, read.

    -1 if there are none.
    """
    readers: dict[int, set[int]] = {}
    maker: dict[int, Step] = {}
    for i, step in enumerate(program.steps):
        maker.update(dict.fromkeys(step.outs, step))
        for number in step.ins:
            if step.name in PRODUCTS:
                readers.setdefault(number, set()).add(i)
    window_of = {i: k for k, window in enumerate(found) for i in window.steps}
    last = [-1] * len(found)
    for place, numbers in enumerate(inputs):
        for x in numbers:
            made = maker.get(x)
            x = made.ins[0] if made is not None and made.name == "routed" else x
            for i in readers.get(x, ()):
                if i in window_of:
                    last[window_of[i]] = max(last[window_of[i]], place)
    return [max(last[: k + 1]) for k in range(len(last))]


class _Finder:
    """Which steps each value needs, as bits of an integer: step i is bit i."""

    def __init__(self, program: Program):
        self.program = program
        self.maker = {out: step for step in program.steps for out in step.outs}
        self.before: dict[int, int] = {}
        self.products = 0
        for i, step in enumerate(program.steps):
            if not any(out in program.batched for out in step.outs):
                continue
            needed = _union(self.before.get(n, 0) for n in step.ins) | 1 << i
            self.before.update(dict.fromkeys(step.outs, needed))
            if step.name in PRODUCTS and any(n not in program.batched for n in step.ins):
                self.products |= 1 << i

    def sums(self) -> list[int]:
        """The sums of a residual stream and a branch, in order."""
        return [step.outs[0] for step in self.program.steps if self._is_residual(step)]

    def inputs(self) -> list[int]:
        """The inputs of weights after the first ones, in order."""
        found = dict.fromkeys(use.x for use in self.program.uses if use.x in self.before)
        return list(found)

    def _is_residual(self, step: Step) -> bool:
        terms = self._terms(step)
        if len(terms) != 2:
            return False
        for stream, branch in (terms, terms[::-1]):
            mine = self.before.get(branch, 0) & ~self.before.get(stream, 0) & self.products
            other = self.before.get(stream, 0) & ~self.before.get(branch, 0) & self.products
            if not mine:
                continue
            # The stream, or a term of it, goes through the branch; or it is a projection beside a longer branch.
            if any(self._depends(branch, term) for term in self._sources(stream)):
                return True
            if other.bit_count() == 1 and mine.bit_count() >= 2:
                return True
        return False

    def _terms(self, step: Step) -> list[int]:
        if step.name not in ("add", "add_any"):
            return []
        terms = [n for n in step.ins if n in self.program.batched]
        return terms if len(set(terms)) == 2 == len(step.ins) else []

    def _flat(self, number: int, inside: Collection[int] | None = None) -> list[int]:
        """A value and the terms of the sums that it is; sums that are not `inside` are not split."""
        found, stack = [], [number]
        while stack:
            at = stack.pop()
            found.append(at)
            if at in self.maker and (inside is None or at in inside):
                stack.extend(self._terms(self.maker[at]))
        return found

    def _sources(self, number: int) -> list[int]:
        """The terms of a value, and what they are casts, scaled values, slices or the like of; none of a mask."""
        found = []
        for term in self._flat(number):
            way = [term]
            step = self.maker.get(term)
            while step is not None and step.name not in PRODUCTS:
                operands = self._carried(step)
                if not operands:
                    way = []
                if len(operands) != 1:
                    break
                way.append(operands[0])
                step = self.maker.get(operands[0])
            found.extend(way)
        return found

    def _carried(self, step: Step) -> list[int]:
        """The operands that depend on the inputs and whose entries a step may carry on."""
        if step.name in _OF_MASKS:
            return []
        operands = step.ins[1:] if step.name == "select_n" else step.ins  # the first one only chooses
        return [n for n in operands if n in self.program.batched]

    def _depends(self, number: int, on: int) -> bool:
        if on in self.program.inputs:
            return any(on in self.program.steps[i].ins for i in _positions(self.before.get(number, 0)))
        last = self.before.get(on, 0)
        return last != 0 and number != on and last & ~self.before.get(number, 0) == 0

    def with_parts(self, found: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Window]:
        """Windows with the parts that no other window, and nothing after the windows, reads."""
        inside = {i for _, steps in found for i in steps}
        rest = [i for i, step in enumerate(self.program.steps) if i not in inside and self._is_batched(step)]
        reads = [self._parts(steps) for _, steps in found]
        elsewhere = [*self._parts(rest).values(), *self._of(self.program.outs).values()]
        readers: dict[Part, set[int]] = {}
        for i, parts in enumerate((*(r.values() for r in reads), elsewhere)):
            for part in parts:
                readers.setdefault(part, set()).add(i)
        result = []
        for i, ((outs, steps), parts) in enumerate(zip(found, reads, strict=True)):
            mine = {n: part for n, part in parts.items() if _readers(part, readers) == {i}}
            result.append(Window(outs, steps, mine, self._bypass(outs, steps)))
        return result

    def _bypass(self, outs: tuple[int, ...], steps: tuple[int, ...]) -> int | None:
        inside = {out for i in steps for out in self.program.steps[i].outs}
        terms = self._flat(outs[0], inside)[1:] if len(outs) == 1 else []
        return min(terms, key=lambda term: self.before.get(term, 0).bit_count(), default=None)

    def _is_batched(self, step: Step) -> bool:
        return any(out in self.program.batched for out in step.outs)

    def _parts(self, steps: Iterable[int]) -> dict[int, Part]:
        return self._of(n for i in steps for n in self.program.steps[i].ins)

    def _of(self, numbers: Iterable[int]) -> dict[int, Part]:
        """The parameters and slices that these values are, or are computed from without an input."""
        leaves = {number: Part(leaf) for leaf, number in enumerate(self.program.params)}
        found: dict[int, Part] = {}
        stack, seen = list(numbers), set()
        while stack:
            number = stack.pop()
            if number in seen or number in self.program.batched:
                continue
            seen.add(number)
            part = self._slice(number, leaves)
            if part is not None:
                found[number] = part
            elif number in self.maker:
                stack.extend(self.maker[number].ins)
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def _slice(self, number: int, leaves: dict[int, Part]) -> Part | None:
        if number in leaves:
            return leaves[number]
        step = self.maker.get(number)
        if step is None or step.name != INDEX:
            return None
        of, at = self._slice(step.ins[0], leaves), self.program.constants.get(step.ins[1])
        return None if of is None or at is None else Part(of.leaf, (*of.at, int(np.asarray(at))))


def _readers(part: Part, readers: dict[Part, set[int]]) -> set[int]:
    """The windows that read a part, something that it is part of, or a part of it."""
    return {
        i
        for other, found in readers.items()
        if other.leaf == part.leaf and all(a == b for a, b in zip(other.at, part.at, strict=False))
        for i in found
    }


def _union(bits: Iterable[int]) -> int:
    found = 0
    for each in bits:
        found |= each
    return found


def _positions(bits: int) -> tuple[int, ...]:
    found = []
    while bits:
        low = bits & -bits
        found.append(low.bit_length() - 1)
        bits ^= low
    return tuple(found)
