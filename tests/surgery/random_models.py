"""Random functions: chains of reshapes, concatenations, slices, contractions and the like.

Every operation gives zero where its operand is zero, so that zeroing parameters is removing units and the
original function is an oracle that shares nothing with the analysis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def _dense(rng, shape, weight):
    dim, size = rng.integers(len(shape)), int(rng.choice([2, 4, 6, 8, 12]))
    name = weight(shape[dim], size)
    return lambda v, p: jnp.tensordot(v, p[name], ((dim,), (0,)))


def _scale(rng, shape, weight):
    dim = rng.integers(len(shape))
    name = weight(shape[dim])
    along = [n if d == dim else 1 for d, n in enumerate(shape)]
    return lambda v, p: v * p[name].reshape(along)


def _activation(rng, shape, weight):
    del shape, weight
    act = (jax.nn.relu, jnp.tanh, jnp.sin, jax.nn.gelu)[rng.integers(4)]
    return lambda v, p: act(v)


def _reshape(rng, shape, weight):
    del weight
    sizes, left = [], int(np.prod(shape))
    for _ in range(rng.integers(0, 3)):
        sizes.append(int(rng.choice([d for d in range(1, left + 1) if left % d == 0])))
        left //= sizes[-1]
    sizes.append(left)
    rng.shuffle(sizes)
    return lambda v, p: v.reshape(sizes)


def _transpose(rng, shape, weight):
    del weight
    order = [int(d) for d in rng.permutation(len(shape))]
    return lambda v, p: v.transpose(order)


def _split(rng, shape, weight):
    del weight
    dim = int(rng.integers(len(shape)))
    pieces = int(rng.choice([d for d in range(1, shape[dim] + 1) if shape[dim] % d == 0]))
    one, other = (int(rng.integers(pieces)) for _ in range(2))
    act = (jnp.add, jnp.multiply)[rng.integers(2)]

    def apply(v, p):
        parts = jnp.split(v, pieces, dim)
        return act(parts[one], parts[other])

    return apply


def _slice(rng, shape, weight):
    del weight
    dim = int(rng.integers(len(shape)))
    start = int(rng.integers(shape[dim]))
    stop, stride = int(rng.integers(start, shape[dim])) + 1, int(rng.choice([1, 1, 2, 3]))
    return lambda v, p: lax.slice_in_dim(v, start, v.shape[dim] if stride > 1 else stop, stride, dim)


def _concat(rng, shape, weight):
    dim, name = int(rng.integers(len(shape))), weight(*shape)
    return lambda v, p: jnp.concatenate([v, jnp.sin(v) * p[name]], dim)


def _stack(rng, shape, weight):
    dim, name = int(rng.integers(len(shape) + 1)), weight(*shape)
    return lambda v, p: jnp.stack([v, v * p[name]], dim)


def _tile(rng, shape, weight):
    del weight
    dim = rng.integers(len(shape))
    return lambda v, p: jnp.tile(v, [2 if d == dim else 1 for d in range(len(shape))])


def _repeat(rng, shape, weight):
    del weight
    dim = int(rng.integers(len(shape)))
    return lambda v, p: jnp.repeat(v, 2, dim)


def _pad(rng, shape, weight):
    del weight
    dim = rng.integers(len(shape))
    low, high = int(rng.integers(-1 if shape[dim] > 1 else 0, 3)), int(rng.integers(0, 3))
    config = [(low, high, 0) if d == dim else (0, 0, 0) for d in range(len(shape))]
    return lambda v, p: lax.pad(v, jnp.zeros((), v.dtype), config)


def _roll(rng, shape, weight):
    del weight
    dim, by = int(rng.integers(len(shape))), int(rng.integers(1, 4))
    return lambda v, p: jnp.roll(v, by, dim)


def _sum(rng, shape, weight):
    del weight
    dim = int(rng.integers(len(shape)))
    return lambda v, p: v * v.sum(dim, keepdims=True)


def _gram(rng, shape, weight):
    name, dim = weight(*shape), int(rng.integers(len(shape)))
    return lambda v, p: jnp.tensordot(v, p[name] * v, ((dim,), (dim,))) / 4


def _scan(rng, shape, weight):
    del rng
    name = weight(shape[-1], shape[-1])
    return lambda v, p: lax.scan(lambda c, _: (jnp.tanh(c @ p[name]), None), v, None, length=2)[0]


def _conv(rng, shape, weight):
    features = shape[-1]
    groups = int(rng.choice([g for g in range(1, features + 1) if features % g == 0]))
    name = weight(2, features // groups, groups * int(rng.choice([1, 2, 3])))

    def apply(v, p):
        x = v.reshape(1, -1, features)
        numbers = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, p[name], (1,), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )[0]

    return apply


def _reverse(rng, shape, weight):
    del weight
    dim = int(rng.integers(len(shape)))
    return lambda v, p: jnp.flip(v, dim)


def _take(rng, shape, weight):
    del weight
    dim = int(rng.integers(len(shape)))
    index = rng.integers(0, shape[dim], 3)
    return lambda v, p: jnp.take(v, index, dim)


def _where(rng, shape, weight):
    del weight
    dim = int(rng.integers(len(shape)))
    bound = int(rng.integers(shape[dim] + 1))
    along = [n if d == dim else 1 for d, n in enumerate(shape)]
    return lambda v, p: jnp.where((jnp.arange(along[dim]) < bound).reshape(along), v, jnp.sin(v))


def _triangle(rng, shape, weight):
    del weight
    dim, diagonal = int(rng.integers(len(shape))), int(rng.integers(-1, 2))
    return lambda v, p: jnp.tensordot(v, jnp.tri(v.shape[dim], k=diagonal), ((dim,), (0,)))


def _runs(rng, shape, weight):
    """Pieces of an axis in another order, or its columns as rows of two, by a constant index."""
    del weight
    dim = int(rng.integers(len(shape)))
    size = shape[dim]
    cut = int(rng.integers(size))
    index = np.roll(np.arange(size), -cut)
    if size % 2 == 0 and rng.integers(2):
        index = np.arange(size).reshape(-1, 2).T.ravel()
    if rng.integers(3) == 0:
        index = index[: max(1, size // 2)]
    return lambda v, p: jnp.take(v, index, dim)


def _set(rng, shape, weight):
    del weight
    dim = int(rng.integers(len(shape)))
    start = int(rng.integers(shape[dim]))
    stop = int(rng.integers(start, shape[dim])) + 1
    place = (*[slice(None)] * dim, slice(start, stop) if rng.integers(2) else np.arange(start, stop))

    def apply(v, p):
        return v.at[place].add(jnp.sin(v[place])) if stop - start > 1 else v.at[place].set(0.0)

    return apply


_OPERATIONS = (
    [_dense] * 6
    + [_activation, _scale, _reshape, _reshape, _transpose, _split, _slice, _concat, _stack]
    + [_pad, _roll, _sum, _gram, _scan, _conv, _reverse, _take]
    + [_where, _triangle, _runs, _set]
)
# A copy made by broadcasting belongs to no parameter: zeroing can't remove it where copies are summed.
_COPIES = [_tile, _repeat] * 2


def random_model(seed: int, copies: bool = False):
    """(fn, params, inputs) of a random function, with or without copies of units."""
    operations = _OPERATIONS + _COPIES if copies else _OPERATIONS
    rng = np.random.default_rng(seed)
    params, steps = {}, []

    def weight(*shape):
        name = f"w{len(params)}"
        params[name] = jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
        return name

    x = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    shape = x.shape
    for _ in range(rng.integers(4, 11)):
        operation = operations[rng.integers(len(operations))] if np.prod(shape) < 3000 else _dense
        step = operation(rng, shape, weight)
        now = jax.eval_shape(step, jax.ShapeDtypeStruct(shape, jnp.float32), params).shape
        if now and len(now) < 6:
            steps.append(step)
            shape = now
    # Contract every axis at the end: what is left of the function must not hold the axes inside it.
    ends = [weight(size, 2) for size in shape]

    def fn(p, x):
        for step in steps:
            x = step(x, p)
        for name in ends:
            x = jnp.tensordot(x, p[name], ((0,), (0,)))
        return x

    return fn, params, (x,)
