"""Streams: all calibration batches pass through a function together, from one weight to the next.

Between two weights is a segment: the steps that the activations of the next weight need. A segment is compiled once
for all layers of one kind and run batch by batch. Values that no later step needs are released.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.host import settled
from jaxprune.jaxprs.program import Program, Step, Use

# (sources, values of one batch) -> results; its first argument is the segment that is compiled.
Run = functools.partial[list[Any]]


class Site(NamedTuple):
    """Weights that multiply the same activations, and these activations, batch by batch."""

    uses: list[Use]
    activations: list[Any]  # (groups, rows, inputs) once `uses[0].rows` is applied


def sites(program: Program) -> list[list[Use]]:
    """The uses in the order of the program; uses of the same activations are grouped."""
    together: dict[Hashable, list[Use]] = {}
    for use in program.uses:
        together.setdefault((use.x, use.rows), []).append(use)
    return list(together.values())


class Stream:
    """Runs a program over batches; the parameters may change between one site and the next.

    Args:
      program: the flat program.
      params: values of its parameters.
      batches: values of its inputs, batch by batch.
      wanted: other values that will be taken, each of them once.
    """

    def __init__(
        self,
        program: Program,
        params: Sequence[Any],
        batches: Sequence[Sequence[Any]],
        wanted: Sequence[int] = (),
    ):
        self.program = program
        self._shared = dict(program.constants)
        self._shared.update(zip(program.params, params, strict=True))
        self._batches = [dict(zip(program.inputs, batch, strict=True)) for batch in batches]
        self._maker = makers(program)
        self._readers: dict[int, set[int]] = {}
        for i, step in enumerate(program.steps):
            for number in step.ins:
                self._readers.setdefault(number, set()).add(i)
        self._done: set[int] = set()
        # Called with the number of the next site's activations.
        self.before_site: Callable[[int], None] | None = None
        self._wanted = Counter([*(use.x for use in program.uses), *wanted])
        self._needed = set(self._ancestors(list(self._wanted), lambda i: True))

    def set_param(self, leaf: int, value: Any) -> None:
        """Changes a parameter for all later sites."""
        self._shared[self.program.params[leaf]] = value

    def param(self, leaf: int) -> Any:
        """A parameter as it is now."""
        return self._shared[self.program.params[leaf]]

    def __iter__(self) -> Iterator[Site]:
        for uses in sites(self.program):
            if self.before_site is not None:
                self.before_site(uses[0].x)
            yield Site(uses, self._values(uses[0].x))
            self._release(uses[0].x, len(uses))

    def take(self, number: int) -> list[Any]:
        """One of the wanted values, batch by batch."""
        found = self.peek(number)
        self.release(number)
        return found

    def shared(self, numbers: Sequence[int]) -> dict[int, Any]:
        """Values that depend on no input, with the parameters as they are now."""
        return dict(zip(numbers, self._shared_values(list(numbers)), strict=True)) if numbers else {}

    def ancestors(self, number: int) -> set[int]:
        """The values that a value depends on, itself included."""
        steps = self._ancestors([number], lambda i: True)
        return {
            number,
            *(n for i in steps for n in (*self.program.steps[i].ins, *self.program.steps[i].outs)),
        }

    def peek(self, number: int) -> list[Any]:
        """One of the wanted values, batch by batch; it remains wanted."""
        return self._values(number)

    def release(self, number: int) -> None:
        """Gives up a value that was wanted."""
        self._release(number, 1)

    def redo(self, steps: Sequence[int]) -> None:
        """Runs steps again, with the parameters as they are now; all values that they read must still be wanted."""
        self._done.difference_update(steps)
        self._run_steps(steps)

    def _values(self, number: int) -> list[Any]:
        """A value batch by batch, or one item if the value depends on no input."""
        if number not in self.program.batched:
            return self._shared_values([number])
        self._run([number])
        return [values[number] for values in self._batches]

    def _run(self, targets: list[int]) -> None:
        """Runs the steps that the targets need and that were not run yet, batch by batch."""
        steps = self._ancestors(targets, lambda i: self._is_batched(i) and i not in self._done)
        if steps:
            self._run_steps(steps)

    def _run_steps(self, steps: Sequence[int]) -> None:
        self._done.update(steps)
        outs = [
            out
            for i in steps
            for out in self.program.steps[i].outs
            if self._wanted[out] or self._later_readers(out)
        ]
        # Values that depend on parameters only are computed again in every segment: a parameter may have changed.
        run, sources, own = segment(self.program, self._maker, steps, outs)
        given = [self._shared[n] for n in sources]
        over = [n for n in own if not (self._wanted[n] or self._later_readers(n))]
        for values in self._batches:
            made = run(given, [values[n] for n in own])
            settled(made)
            values.update(zip(outs, made, strict=True))
            for n in over:
                values.pop(n, None)

    def _shared_values(self, targets: list[int]) -> list[Any]:
        steps = self._ancestors(targets, lambda i: True)
        made = {out for i in steps for out in self.program.steps[i].outs}
        sources = _unique(
            n for n in (*targets, *(k for i in steps for k in self.program.steps[i].ins)) if n not in made
        )
        run = compiled(tuple(self.program.steps[i] for i in steps), tuple(sources), (), tuple(targets))
        return run([self._shared[n] for n in sources], [])

    def _ancestors(self, targets: Sequence[int], among: Callable[[int], bool]) -> list[int]:
        """Steps that the targets need, in order; steps for which `among` is false are not followed further."""
        found: set[int] = set()
        stack = list(targets)
        while stack:
            maker = self._maker.get(stack.pop())
            if maker is not None and maker not in found and among(maker):
                found.add(maker)
                stack.extend(self.program.steps[maker].ins)
        return sorted(found)

    def _is_batched(self, step: int) -> bool:
        return (
            self.program.steps[step].outs[0] in self.program.batched
            if self.program.steps[step].outs
            else False
        )

    def _later_readers(self, number: int) -> bool:
        return bool((self._readers.get(number, set()) & self._needed) - self._done)

    def _release(self, number: int, times: int) -> None:
        self._wanted[number] -= times
        if not (self._wanted[number] or self._later_readers(number)):
            for values in self._batches:
                values.pop(number, None)


def makers(program: Program) -> dict[int, int]:
    """The step that makes each value."""
    return {out: i for i, step in enumerate(program.steps) for out in step.outs}


def segment(
    program: Program,
    maker: Mapping[int, int],
    steps: Sequence[int],
    outs: Sequence[int],
    parts: Collection[int] = (),
) -> tuple[Run, list[int], list[int]]:
    """A function of (sources, values of one batch) that runs some steps, and the numbers of both arguments.

    The sources are parameters and constants, and first of all `parts`, which are not computed from parameters.
    `maker` is what `makers` gives.
    """
    inside = {out for i in steps for out in program.steps[i].outs}
    reads = _unique(n for i in steps for n in program.steps[i].ins if n not in inside)
    own = [n for n in reads if n in program.batched]
    before: set[int] = set()
    sources, seen = list(parts), set(parts)
    stack = [n for n in reversed(reads) if n not in program.batched]
    while stack:
        number = stack.pop()
        if number in seen:
            continue
        seen.add(number)
        if number in maker:
            before.add(maker[number])
            stack.extend(reversed(program.steps[maker[number]].ins))
        else:
            sources.append(number)
    run = compiled(
        tuple(program.steps[i] for i in (*sorted(before), *steps)), tuple(sources), tuple(own), tuple(outs)
    )
    return run, sources, own


def compiled(
    steps: tuple[Step, ...], shared: tuple[int, ...], own: tuple[int, ...], outs: tuple[int, ...]
) -> Run:
    """A function of (shared values, values of one batch) that runs steps; equal steps compile once."""
    numbers: dict[int, int] = {}
    for n in (*shared, *own, *(out for step in steps for out in step.outs)):
        numbers.setdefault(n, len(numbers))

    def renumbered(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(numbers[n] for n in values)

    segment = _Segment(
        tuple(step._replace(ins=renumbered(step.ins), outs=renumbered(step.outs)) for step in steps),
        len(shared),
        len(own),
        renumbered(outs),
    )
    return functools.partial(_run_segment, segment)


class _Segment:
    """Steps as a static argument of `jit`: two segments are equal if their keys are equal."""

    __slots__ = ("_hash", "_key", "outs", "steps")

    def __init__(self, steps: tuple[Step, ...], n_shared: int, n_own: int, outs: tuple[int, ...]):
        self.steps, self.outs = steps, outs
        self._key = (tuple((s.key, s.ins, s.outs) for s in steps), n_shared, n_own, outs)
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Segment) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def run(self, shared: Sequence[Any], own: Sequence[Any]) -> list[Any]:
        values = dict(enumerate((*shared, *own)))
        for step in self.steps:
            values.update(zip(step.outs, step.run(*[values[n] for n in step.ins]), strict=True))
        return [jnp.asarray(values[n]) for n in self.outs]


@functools.partial(jax.jit, static_argnums=0)
def _run_segment(segment: _Segment, shared: list[Any], own: list[Any]) -> list[Any]:
    return segment.run(shared, own)


def _unique(numbers: Any) -> list[int]:
    return list(dict.fromkeys(numbers))
