"""The full function with some of its reductions masked, and the change that masking each of them makes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.jax_compat import context_of
from jaxprune.jaxprs import bind, control_flow, is_array_leaf
from jaxprune.jaxprs.calls import kind_of, while_parts
from jaxprune.jaxprs.equations import literal_value, shape_of, walk
from jaxprune.surgery.evaluation.interpreter import Masked
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.model import Model
from jaxprune.surgery.inference.rules import RULES, take_kept

Errors = dict[int, Any]  # number of a reduction -> largest relative change

# A check runs once or twice, so a short compilation matters more than a fast program.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Place(NamedTuple):
    """A reduction over an axis that loses units; each call of a function has places of its own."""

    frame: Frame
    number: int  # of the equation

    @property
    def name(self) -> str:
        eqn = self.frame.jaxpr.eqns[self.number]
        return f"{eqn.primitive.name} at {self.frame.source(eqn)}"


class Watched:
    """A model whose reductions over removed units can be masked one by one, by flags that may be traced.

    The equations run as they are written, on full arrays; no array is cut.
    """

    def __init__(self, model: Model, keep: Keep):
        self.model, self.keep = model, keep
        self.masked = Masked(keep)
        self.places = list(_places(model.frame, keep))
        self._numbers = {(id(place.frame), place.number): i for i, place in enumerate(self.places)}
        self._inside: dict[int, tuple[int, ...]] = {}

    def __call__(self, params: Any, inputs: Any, flags: Any, level: Any) -> tuple[list[Any], jax.Array]:
        """Runs the function; a reduction is masked if its flag is set, or if masking changes its result by much.

        Args:
          params, inputs: as the function was analysed with.
          flags: bool array with an entry for each of `places`.
          level: a reduction is also masked if masking changes its result by more than this.

        Returns:
          (the outputs, for each place the largest change that masking it makes or would make).
        """
        arrays = [jnp.asarray(x) for x in jax.tree.leaves((params, inputs)) if is_array_leaf(x)]
        run = _Run(self, flags, level)
        outs, errors = run.call(self.model.frame, [*self.model.traced.consts, *arrays])
        return outs, jnp.array([errors[number] for number in range(len(self.places))], jnp.float32)

    def number(self, frame: Frame, index: int) -> int | None:
        return self._numbers.get((id(frame), index))

    def inside(self, frame: Frame) -> tuple[int, ...]:
        """Numbers of the places in a call and in the calls inside it."""
        if id(frame) not in self._inside:
            own = (self.number(frame, i) for i in range(len(frame.jaxpr.eqns)))
            deeper = (n for bodies in frame.calls.values() for body in bodies for n in self.inside(body))
            self._inside[id(frame)] = (*(n for n in own if n is not None), *deeper)
        return self._inside[id(frame)]


def _places(frame: Frame, keep: Keep) -> Iterator[Place]:
    for index, eqn in enumerate(frame.jaxpr.eqns):
        for body in frame.calls.get(index, ()):
            yield from _places(body, keep)
        rule = RULES.get(eqn.primitive.name)
        if index not in frame.calls and rule is not None and rule.reduces is not None:
            ins = frame.ins(eqn)
            if any(keep.cuts([ins[r.operand][dim] for dim in r.dimensions]) for r in rule.reduces(eqn, ins)):
                yield Place(frame, index)


class _Run:
    def __init__(self, watched: Watched, flags: Any, level: Any):
        self.watched, self.flags, self.level = watched, flags, level

    def call(self, frame: Frame, args: Sequence[Any]) -> tuple[list[Any], Errors]:
        errors: Errors = {}

        def equation(index: int, eqn: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
            with context_of(eqn):
                results, more = self._equation(frame, index, eqn, operands)
            errors.update(more)
            return results

        return walk(frame.jaxpr, frame.consts, args, literal_value, equation), errors

    def _equation(
        self, frame: Frame, index: int, eqn: JaxprEqn, args: list[Any]
    ) -> tuple[Sequence[Any], Errors]:
        bodies = frame.calls.get(index, ())
        if bodies and not any(map(self.watched.inside, bodies)):
            return bind(eqn, args), {}
        match kind_of(eqn):
            case "scan":
                return self._scan(bodies[0], eqn, args)
            case "while":
                return self._while(bodies, eqn, args)
            case "cond":
                return self._cond(bodies, args)
            case "linear_solve":  # its bodies are given to a solver: they run as they are written
                return bind(eqn, args), _none([n for body in bodies for n in self.watched.inside(body)])
            case _ if bodies:
                return self.call(bodies[0], args)
        number = self.watched.number(frame, index)
        if number is None:
            return bind(eqn, args), {}
        return self._reduction(number, frame, eqn, args)

    def _reduction(
        self, number: int, frame: Frame, eqn: JaxprEqn, args: list[Any]
    ) -> tuple[Sequence[Any], Errors]:
        keep = self.watched.keep
        plain = bind(eqn, args)
        masked = bind(eqn, self.watched.masked.mask_reduced(frame, eqn, args))
        axes = [frame.of(v) for v in eqn.outvars]
        error = largest_difference(
            [take_kept(x, a, keep) for x, a in zip(plain, axes, strict=True)],
            [take_kept(x, a, keep) for x, a in zip(masked, axes, strict=True)],
        )
        chosen = self.flags[number] | (error > self.level)
        return [jnp.where(chosen, x, y) for x, y in zip(masked, plain, strict=True)], {number: error}

    def _scan(self, body: Frame, eqn: JaxprEqn, args: list[Any]) -> tuple[Sequence[Any], Errors]:
        def step(values: list[Any], before: Errors) -> tuple[list[Any], Errors]:
            outs, errors = self.call(body, values)
            return outs, _larger(before, errors)

        return control_flow.scan(eqn, args, step, _none(self.watched.inside(body)))

    def _cond(self, branches: Sequence[Frame], args: list[Any]) -> tuple[Sequence[Any], Errors]:
        every = _none([number for branch in branches for number in self.watched.inside(branch)])

        def run(branch: Frame):
            def of(*values):
                outs, errors = self.call(branch, values)
                return outs, {**every, **errors}

            return of

        return lax.switch(args[0], [run(branch) for branch in branches], *args[1:])

    def _while(self, bodies: Sequence[Frame], eqn: JaxprEqn, args: list[Any]) -> tuple[Sequence[Any], Errors]:
        """Binds the primitive itself, since a vmapped loop has a predicate for each member of the batch.

        The condition is watched in the body, before each step, and once more at the end.
        """
        cond, body = bodies
        cond_consts, (body_consts, carry, _) = while_parts(eqn, args)
        numbers = sorted({*self.watched.inside(cond), *self.watched.inside(body)})
        shape = shape_of(cond.jaxpr.outvars[0])

        # The jaxpr of a loop can't capture traced values from outside, so flags and level are arguments too.
        def goes_on(flags, level, consts, state):
            state, _ = state
            return _Run(self.watched, flags, level).call(cond, [*consts, *state])[0][0]

        def step(flags, level, consts, more, state):
            run, (state, errors) = _Run(self.watched, flags, level), state
            _, of_cond = run.call(cond, [*more, *state])
            outs, of_body = run.call(body, [*consts, *state])
            errors = _larger(_larger(errors, of_cond), of_body)
            return outs, {number: jnp.broadcast_to(errors[number], shape) for number in numbers}

        of_cond, (of_body, of_carry, _) = while_parts(eqn, control_flow.abstract_operands(eqn, args))
        start = {number: jnp.zeros(shape, jnp.float32) for number in numbers}
        state = of_carry, start
        flags, level = jnp.asarray(self.flags), jnp.asarray(self.level)
        changed = {
            "cond_jaxpr": jax.make_jaxpr(goes_on)(flags, level, of_cond, state),
            "body_jaxpr": jax.make_jaxpr(step)(flags, level, of_body, of_cond, state),
            "cond_nconsts": len(of_cond) + 2,
            "body_nconsts": len(of_body) + len(of_cond) + 2,
        }
        consts = [flags, level, *cond_consts, flags, level, *body_consts, *cond_consts]
        flat = [start[number] for number in numbers]
        outs = bind(eqn, [*consts, *carry, *flat], **changed)
        results, found = list(outs[: len(carry)]), outs[len(carry) :]
        _, last = self.call(cond, [*cond_consts, *results])
        errors = {n: jnp.max(error, initial=0.0) for n, error in zip(numbers, found, strict=True)}
        return results, _larger(errors, last)


def _none(numbers: Sequence[int]) -> Errors:
    return {number: jnp.zeros((), jnp.float32) for number in numbers}


def _larger(a: Mapping[int, Any], b: Mapping[int, Any]) -> Errors:
    return {
        **a,
        **{number: jnp.maximum(a[number], error) if number in a else error for number, error in b.items()},
    }


def largest_difference(a: Sequence[Any], b: Sequence[Any]) -> jax.Array:
    """Largest difference between the arrays, relative to the largest finite entry of the second array of each pair.

    Equal entries have the difference 0, also infinities and NaN; NaN on one side only is an infinite difference.
    Whole numbers and bools differ by 1 or 0.
    """
    errors = [_difference(x, y) for x, y in zip(a, b, strict=True) if x.size]
    return functools.reduce(jnp.maximum, errors, jnp.zeros((), jnp.float32))


@jax.jit  # traced once for each shape, however many reductions have it
def _difference(x: Any, y: Any) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.any(x != y).astype(jnp.float32)
    if jnp.finfo(x.dtype).bits < 32:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    same = (x == y) | (jnp.isnan(x) & jnp.isnan(y))
    scale = jnp.maximum(jnp.max(jnp.where(jnp.isfinite(y), jnp.abs(y), 0)), 1e-30)
    error = jnp.max(jnp.where(same, 0, jnp.abs(x - y) / scale))
    return jnp.where(jnp.isnan(error), jnp.inf, error).astype(jnp.float32)
