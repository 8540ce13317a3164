"""Normalizations by parameters: where a program subtracts a mean and divides by a deviation that are both parameters.

BatchNorm in inference is such a place, whatever the framework and the order of its operations. A LayerNorm is not:
its mean and variance are computed from the activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs.program import INDEX, Program, Step
from jaxprune.jaxprs.views import FOLLOWED, UNCHANGED

_MOVES = (FOLLOWED - UNCHANGED) | {INDEX}


class Link(NamedTuple):
    """A step on the way of a parameter to the activations.

    place: which operand of the step is on the way; out: which of its results; kind: whether the step moves entries,
    leaves them as they are, scales them, or belongs to what is computed from the parameter (a root, a product).
    """

    step: Step
    place: int
    out: int
    kind: Literal["moves", "same", "scales", "after"]


class Way(NamedTuple):
    """How the entries of a parameter spread over the entries of an activation."""

    leaf: int
    links: tuple[Link, ...] = ()

    @property
    def reads(self) -> list[int]:
        """The other values that the steps on the way read."""
        return [n for link in self.links for i, n in enumerate(link.step.ins) if i != link.place]

    def key(self, numbers: Mapping[int, int]) -> Any:
        """Equal for ways on which the same is computed; `numbers` are those of the values in `reads`."""
        return tuple(
            (link.step.key, tuple(numbers.get(n) for n in link.step.ins), *link[1:]) for link in self.links
        )

    def spread(self, entries: jax.Array, others: Mapping[int, Any], shape: tuple[int, ...]) -> jax.Array:
        """Entries of the parameter at each entry of the activation, of this shape."""
        for link in self.links:
            if link.kind == "moves":
                entries = _run(link, entries, others)
            elif link.kind != "same":
                shapes = [np.shape(others[n]) for i, n in enumerate(link.step.ins) if i != link.place]
                entries = jnp.broadcast_to(entries, jnp.broadcast_shapes(entries.shape, *shapes))
        return jnp.broadcast_to(entries, shape)

    def scale(self, like: Any, others: Mapping[int, Any], shape: tuple[int, ...]) -> jax.Array:
        """The factor of the parameter at each entry of the activation, in float32."""
        value, linear = jnp.ones(like.shape, like.dtype), True
        for link in self.links:
            linear = linear and link.kind != "after"
            if linear or link.kind == "moves":
                value = _run(link, value, others)
            elif link.kind == "after":
                shapes = [np.shape(others[n]) for i, n in enumerate(link.step.ins) if i != link.place]
                value = jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, *shapes))
        return jnp.broadcast_to(value.astype(jnp.float32), shape)


class Normalization(NamedTuple):
    """A place at which (x - mean) / sqrt(variance + epsilon) is computed, or x / ... - mean / ..."""

    x: int
    mean: Way
    variance: Way


def normalizations(program: Program, shapes: Sequence[tuple[int, ...]]) -> list[Normalization]:
    """The normalizations of a program in its order, given the shapes of its parameters."""
    return _Finder(program, shapes).run()


class _Origin(NamedTuple):
    """A value that is computed from one parameter: proportional to it, plus a constant, or a root of that."""

    way: Way
    stage: Literal["linear", "shifted", "root"]


class _Finder:
    def __init__(self, program: Program, shapes: Sequence[tuple[int, ...]]):
        self.program, self.shapes = program, shapes
        self._maker = {out: step for step in program.steps for out in step.outs}
        self._readers: dict[int, list[Step]] = {}
        for step in program.steps:
            for number in set(step.ins):
                self._readers.setdefault(number, []).append(step)
        self._origins: dict[int, _Origin | None] = {
            number: _Origin(Way(leaf), "linear") if shapes[leaf] else None
            for leaf, number in enumerate(program.params)
        }

    def run(self) -> list[Normalization]:
        for step in self.program.steps:  # operands come first
            if not any(out in self.program.batched for out in step.outs):
                for i, out in enumerate(step.outs):
                    self._origins[out] = self._origin(step, i)
        found = [self._of(step) for step in self.program.steps if step.name in ("mul", "div")]
        return list(dict.fromkeys(found_one for found_one in found if found_one is not None))

    def _origin(self, step: Step, out: int) -> _Origin | None:
        name = step.name
        origins = [self._origins.get(n) for n in step.ins]
        known = [i for i, origin in enumerate(origins) if origin is not None]
        if not known:
            return None
        if name in _MOVES or name in UNCHANGED:
            return _after(origins[0], Link(step, 0, out, "same" if name in UNCHANGED else "moves"))
        roots = [i for i in known if origins[i].stage == "root"]  # type: ignore[union-attr]
        if len(roots) == 1 and name in ("mul", "div", "add", "max", "pow", "integer_pow"):
            return _after(origins[roots[0]], Link(step, roots[0], out, "after"))
        i = known[0]
        origin: Any = origins[i]
        if roots or origin.stage == "root":
            return None
        if name in ("sqrt", "rsqrt") or (name == "pow" and i == 0 and abs(_literal(step, 1)) == 0.5):
            return _after(origin, Link(step, i, out, "after"), "root")
        if len(known) > 1:
            return None
        if name in ("add", "max"):
            return _after(origin, Link(step, i, out, "after"), "shifted")
        if origin.stage == "linear" and (name == "mul" or (name == "div" and _is_operand(step, i, 0))):
            return _after(origin, Link(step, i, out, "scales"))
        return None

    def _of(self, step: Step) -> Normalization | None:
        """The normalization that divides by its deviation in this step."""
        if len(step.ins) != 2:
            return None
        batched = [n in self.program.batched for n in step.ins]
        i = batched.index(False) if sum(batched) == 1 else -1
        origin = self._origins.get(step.ins[i]) if i >= 0 else None
        if origin is None or origin.stage != "root" or (step.name == "div" and i == 0):
            return None
        variance = origin.way
        found = self._subtracted_before(step.ins[1 - i]) or self._subtracted_after(step, step.ins[i])
        if found is None:
            return None
        x, mean = found
        same = self.shapes[mean.leaf] == self.shapes[variance.leaf] and mean.leaf != variance.leaf
        return Normalization(x, mean, variance) if same else None

    def _subtracted_before(self, number: int) -> tuple[int, Way] | None:
        while True:
            step = self._maker.get(number)
            name = "" if step is None else step.name
            if step is None:
                return None
            if name == "sub" and len(step.ins) == 2:
                x, mean = step.ins
                origin = self._origins.get(mean)
                fits = x in self.program.batched and origin is not None and origin.stage == "linear"
                return (x, origin.way) if fits else None  # type: ignore[union-attr]
            batched = [n for n in step.ins if n in self.program.batched]
            if len(batched) != 1 or not (name in UNCHANGED or name == "mul" or _divides(step, batched[0])):
                return None
            number = batched[0]

    def _subtracted_after(self, step: Step, factor: int) -> tuple[int, Way] | None:
        """For x * factor + (shift - mean * factor)."""
        (x,) = [n for n in step.ins if n != factor]
        number, base = step.outs[0], self._base(factor)
        while True:
            readers = self._readers.get(number, [])
            if len(readers) != 1:
                return None
            (reader,) = readers
            others = [n for n in reader.ins if n != number]
            if any(n in self.program.batched for n in others):
                return None
            if reader.name in ("add", "sub") and len(others) == 1:
                mean = self._mean_times(others[0], base)
                return None if mean is None else (x, mean)
            if reader.name not in UNCHANGED:
                return None
            number = reader.outs[0]

    def _mean_times(self, number: int, factor: int) -> Way | None:
        """The mean in a value that is `mean * factor`, or something minus it."""
        path: list[Link] = []
        while True:
            step = self._maker.get(number)
            if step is None:
                return None
            name = step.name
            if name == "mul" and len(step.ins) == 2:
                for i, n in enumerate(step.ins):
                    origin = self._origins.get(n)
                    if (
                        origin is not None
                        and origin.stage == "linear"
                        and self._base(step.ins[1 - i]) == factor
                    ):
                        links = (Link(step, i, 0, "after"), *reversed(path))
                        return origin.way._replace(links=(*origin.way.links, *links))
                return None
            if name in _MOVES or name in UNCHANGED:
                kind = "same" if name in UNCHANGED else "moves"
                path.append(Link(step, 0, step.outs.index(number), kind))
                number = step.ins[0]
            elif name == "sub" or name == "neg":
                path.append(Link(step, len(step.ins) - 1, 0, "after"))
                number = step.ins[-1]
            else:
                return None

    def _base(self, number: int) -> int:
        """The value whose entries these are."""
        step = self._maker.get(number)
        while step is not None and (step.name in _MOVES or step.name in UNCHANGED):
            number = step.ins[0]
            step = self._maker.get(number)
        return number


def _after(origin: _Origin | None, link: Link, stage: Any = None) -> _Origin | None:
    if origin is None:
        return None
    way = origin.way._replace(links=(*origin.way.links, link))
    return _Origin(way, origin.stage if stage is None else stage)


def _run(link: Link, value: jax.Array, others: Mapping[int, Any]) -> jax.Array:
    given = [value if i == link.place else others[n] for i, n in enumerate(link.step.ins)]
    return link.step.run(*given)[link.out]


def _operands(step: Step) -> Sequence[Any]:
    """What the key of a step says of its operands: ("literal", value, type), or their types."""
    return step.key[2] if isinstance(step.key, tuple) and len(step.key) == 4 else ()  # type: ignore[index]


def _is_literal(operand: Any) -> bool:
    return operand[0] == "literal"


def _is_operand(step: Step, place: int, operand: int) -> bool:
    """Whether value number `place` of a step is its operand number `operand`, literals counted."""
    places = [i for i, x in enumerate(_operands(step)) if not _is_literal(x)]
    return place < len(places) and places[place] == operand


def _divides(step: Step, number: int) -> bool:
    """Whether a step divides this value by something."""
    return step.name == "div" and _is_operand(step, step.ins.index(number), 0)


def _literal(step: Step, operand: int) -> float:
    """The number that is an operand of a step; NaN if it is no such literal."""
    operands = _operands(step)
    if operand >= len(operands) or not _is_literal(operands[operand]):
        return float("nan")
    kind, value = operands[operand][1]
    return float(np.frombuffer(value, kind)[0] if isinstance(value, bytes) else value)
