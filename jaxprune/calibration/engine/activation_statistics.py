"""Means and variances that are parameters, such as BatchNorm's, while the weights before them are pruned."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.host import beside
from jaxprune.jaxprs.normalizations import Normalization, normalizations
from jaxprune.jaxprs.rows import weights_of_entries
from jaxprune.jaxprs.stream import Stream
from jaxprune.params import PyTree, flatten_with_paths


class _Sample(NamedTuple):
    """Mean and variance over the calibration rows for each entry of a statistic, and which entries have rows."""

    mean: jax.Array
    variance: jax.Array
    seen: jax.Array


class ActivationStatistics:
    """The statistics of a model, which follow the activations of the pruned model.

    With m, v a mean and a variance of the dense model, and (m_d, v_d), (m_p, v_p) those of the calibration rows in
    the dense and in the pruned model, the new ones are m_p + (m - m_d) sqrt(v_p / v_d) and v v_p / v_d: on these
    rows, each normalized channel has the mean and the variance that it has in the dense model. Few rows thus
    add little noise, and a statistic remains as it is if nothing before it changes.
    """

    def __init__(self, model: CalibrationModel):
        self.model = model
        self.values: dict[int, Any] = {}  # new values of the statistics, by leaf
        is_float = [jnp.issubdtype(value.dtype, jnp.floating) for value in model.values]
        found = normalizations(model.program, [value.shape for value in model.values])
        found = [norm for norm in found if is_float[norm.mean.leaf] and is_float[norm.variance.leaf]]
        stream = model.stream([norm.x for norm in found])
        weights = {use.leaf for use in model.program.uses}
        leaf_of = {number: leaf for leaf, number in enumerate(model.program.params)}
        before = {norm: {leaf_of[n] for n in stream.ancestors(norm.x) if n in leaf_of} for norm in found}
        self._before = {norm: leaves for norm, leaves in before.items() if leaves & weights}
        self._open = list(self._before)
        self._changed: set[int] = set()
        self._dense = {}
        if self._open:
            # Without uses, activations of weights need not be kept for their sites.
            program = model.program._replace(uses=[])
            stream = model._replace(program=program).stream(self.wanted)
            self._dense = {norm: self._sample(stream, norm) for norm in self._open}
            self._open = _own_entries(self._open, self._dense)
            self._before = {norm: self._before[norm] for norm in self._open}

    @property
    def wanted(self) -> list[int]:
        """The values that a stream must let through to `follow`."""
        return [norm.x for norm in self._before]

    def follow(self, stream: Stream, beside: Stream | None = None) -> None:
        """Keeps the statistics of a stream up to date: each before the next weight that depends on it.

        A stream `beside` it gets statistics of its own. Both must reach a site together, that one first.
        """
        self._streams = [stream] if beside is None else [stream, beside]
        self._streams[-1].before_site = self.update_before

    def changed(self, leaf: int, value: Any) -> None:
        """Takes note of a new weight."""
        if not np.array_equal(value, self.model.values[leaf]):
            self._changed.add(leaf)

    def finish(self) -> None:
        """Updates the statistics after the last weight."""
        for norm in tuple(self._open):
            self._update(norm)

    def inserted(self, params: PyTree) -> PyTree:
        """`params` with the new statistics.

        Haiku stores an average in two leaves: `hidden`, a sum that training goes on with, is `average` times a number.
        """
        paths, leaves, treedef = flatten_with_paths(params)
        old = dict(zip(paths, leaves, strict=True))
        new = {self.model.paths[leaf]: value for leaf, value in self.values.items()}
        for path in [path for path in new if path.endswith("/average")]:
            hidden = path.removesuffix("average") + "hidden"
            if hidden in old and hidden not in new and np.shape(old[hidden]) == np.shape(old[path]):
                share = jnp.linalg.norm(old[hidden]) / jnp.linalg.norm(old[path])
                scaled = jnp.where(jnp.isfinite(share), share, 1.0) * new[path]
                new[hidden] = jax.device_put(scaled.astype(old[hidden].dtype), new[path].sharding)
        return jax.tree.unflatten(
            treedef, [new.get(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
        )

    def update_before(self, number: int) -> None:
        """Updates the statistics that a value depends on."""
        if self._open:
            needed = self._streams[0].ancestors(number)
            for norm in [norm for norm in self._open if norm.x in needed]:
                self._update(norm)

    def _update(self, norm: Normalization) -> None:
        self._open.remove(norm)
        if not self._before[norm] & self._changed:
            for stream in self._streams:
                stream.take(norm.x)
            return
        leaves = norm.mean.leaf, norm.variance.leaf
        self._changed.update(leaves)
        for i, stream in enumerate(self._streams):
            mean, variance = (stream.param(leaf) for leaf in leaves)
            found = _followed(mean, variance, self._dense[norm], self._sample(stream, norm))
            for leaf, new in zip(leaves, found, strict=True):
                new = beside(new, stream.param(leaf))
                stream.set_param(leaf, new)
                if i == 0:
                    self.values[leaf] = new

    def _sample(self, stream: Stream, norm: Normalization) -> _Sample:
        reads = list(dict.fromkeys([*norm.mean.reads, *norm.variance.reads]))
        others = stream.shared(reads)
        plan = _Spread(norm, {number: i for i, number in enumerate(others)})
        like, given = self.model.values[norm.mean.leaf], list(others.values())
        activations = stream.take(norm.x)
        pairs = zip(self.model.row_weights, activations, strict=False)
        rows = [None if w is None else weights_of_entries(w, x.shape) for w, x in pairs]

        def mean_of(total, center):
            for x, w in zip(activations, rows, strict=True):
                total = _add(plan, total, x, w, like, given, center)
            return _mean(total)

        nothing = jax.device_put(np.zeros((2, *like.shape), np.float32))
        mean, _ = mean_of(nothing, None)
        variance, seen = mean_of(nothing, mean)
        return _Sample(mean, variance, seen)


class _Spread:
    """A normalization as a static argument of `jit`; equal if the same is computed."""

    __slots__ = ("_hash", "_key", "norm", "numbers")

    def __init__(self, norm: Normalization, numbers: dict[int, int]):
        self.norm, self.numbers = norm, numbers
        self._key = norm.mean.key(numbers), norm.variance.key(numbers)
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Spread) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash


@functools.partial(jax.jit, static_argnums=0)
def _add(
    plan: _Spread,
    total: jax.Array,
    x: jax.Array,
    weights: Any,
    like: jax.Array,
    given: list[Any],
    center: Any,
) -> jax.Array:
    """Adds (sum of c x, sum of c^2) over the entries of x that each entry of a statistic spreads to.

    c is the factor of the statistic there. With a `center` it is the variance's, and x is (x - mean)^2.
    """
    others = {number: given[i] for number, i in plan.numbers.items()}
    of_mean, shape = plan.norm.mean, x.shape
    way = of_mean if center is None else plan.norm.variance
    x, scale = x.astype(jnp.float32), way.scale(like, others, shape)
    if center is not None:
        x = jnp.square(x - of_mean.scale(like, others, shape) * of_mean.spread(center, others, shape))
    parts = scale * x, jnp.square(scale)
    if weights is not None:
        parts = tuple(jnp.where(weights != 0, weights.astype(jnp.float32) * part, 0.0) for part in parts)
    entries = jax.ShapeDtypeStruct(like.shape, jnp.float32)
    collect = jax.linear_transpose(lambda entries: way.spread(entries, others, shape), entries)
    return total + jnp.stack([collect(part)[0] for part in parts])


@jax.jit
def _mean(total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean, given (sum of c x, sum of c^2), and which entries have one."""
    return total[0] / jnp.where(total[1] > 0, total[1], 1.0), total[1] > 0


@jax.jit
def _followed(
    mean: jax.Array, variance: jax.Array, dense: _Sample, pruned: _Sample
) -> tuple[jax.Array, jax.Array]:
    """The new statistics; entries without rows, and those that would not be finite, remain as they are."""
    m, v = mean.astype(jnp.float32), variance.astype(jnp.float32)
    varies = dense.variance > 0
    share = jnp.where(varies, pruned.variance / jnp.where(varies, dense.variance, 1.0), 0.0)
    new_mean = pruned.mean + (m - dense.mean) * jnp.sqrt(share)
    new_variance = jnp.where(varies, v * share, pruned.variance)
    fits = dense.seen & pruned.seen & jnp.isfinite(new_mean) & jnp.isfinite(new_variance)
    return (
        jnp.where(fits, new_mean.astype(mean.dtype), mean),
        jnp.where(fits, new_variance.astype(variance.dtype), variance),
    )


def _own_entries(norms: list[Normalization], samples: dict[Normalization, _Sample]) -> list[Normalization]:
    """The normalizations that share no entry of a statistic with another one."""
    uses: dict[int, Any] = {}
    for norm in norms:
        for leaf in (norm.mean.leaf, norm.variance.leaf):
            uses[leaf] = uses.get(leaf, 0) + np.asarray(samples[norm].seen).astype(np.int32)
    return [
        norm
        for norm in norms
        if all(
            (uses[leaf][np.asarray(samples[norm].seen)] <= 1).all()
            for leaf in (norm.mean.leaf, norm.variance.leaf)
        )
    ]
