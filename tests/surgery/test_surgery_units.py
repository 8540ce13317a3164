"""Which entries make a unit, written by hand for each architecture, and tested by renumbering them.

Nothing here uses the algebra of axes: a unit is a list of places in the parameters. The groups must be these
units and no others, and the function itself must agree: it does not change when the units are renumbered in
all places alike, and it does when one place is left out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import plain_models
import pytest
from checks import difference

import jaxprune as jp
from jaxprune.surgery import plan_units


def units(n, outer=1, inner=1):
    """The unit at each entry of an axis that is a product (outer, n, inner)."""
    return np.tile(np.repeat(np.arange(n), inner), outer)


def none(n):
    return np.full(n, -1)


def cat(*parts):
    return np.concatenate(parts)


def every(ids, *places):
    return dict.fromkeys(places, ids)


def transformer():
    heads, dims, out = {}, {}, {}
    for i in range(2):
        qkv = [(f"{name}{i}", 1) for name in "qkv"]
        heads[f"heads {i}"] = every(units(4, inner=4), *qkv, (f"out{i}", 0))
        dims[f"query and key dimensions {i}"] = every(units(4, outer=4), *qkv[:2])
        dims[f"value dimensions {i}"] = every(units(4, outer=4), qkv[2], (f"out{i}", 0))
        out[f"FFN {i}"] = every(units(10), (f"up{i}", 1), (f"down{i}", 0))
    readers = [(f"{name}{i}", 0) for name in ("q", "k", "v", "up", "s", "o") for i in range(2)]
    writers = [(f"{name}{i}", 1) for name in ("out", "down") for i in range(2)]
    stream = {"residual stream": every(units(12), ("embed", 1), ("pos", 1), *readers, *writers)}
    return {**heads, **dims, **out, **stream}


def llama():
    pairs = cat(units(4), units(4))
    return {
        "key and value heads": {
            **every(units(2, inner=24), ("q", 1), ("o", 0)),
            **every(units(2, inner=8), ("k", 1), ("v", 1)),
        },
        "queries of a key": every(units(3, outer=2, inner=8), ("q", 1), ("o", 0)),
        "RoPE pairs": {("q", 1): np.tile(pairs, 6), ("k", 1): np.tile(pairs, 2)},
        "value dimensions": {("v", 1): units(8, outer=2), ("o", 0): units(8, outer=6)},
        "SwiGLU": every(units(10), ("gate", 1), ("up", 1), ("down", 0)),
        "residual stream": every(
            units(12),
            ("in", 1),
            ("o", 1),
            ("down", 1),
            *((n, 0) for n in ("q", "k", "v", "gate", "up", "n1", "n2", "head")),
        ),
    }


def dense_net():
    widths, out = [4, 3, 3, 3], {}
    for j, (name, width) in enumerate(zip(("stem", "k0", "k1", "k2"), widths, strict=True)):
        places = {(name, 3): units(width)}
        for i in range(j, 4):
            ids = cat(none(sum(widths[:j])), units(width), none(sum(widths[j + 1 : i + 1])))
            readers = [(f"s{i}", 0), (f"b{i}", 0), (f"k{i}", 2)] if i < 3 else [("head", 0)]
            places |= every(ids, *readers)
        out[f"channels of {name}"] = places
    return out


def batch_norms(*names):
    return [(f"{name}_{k}", 0) for name in names for k in ("mean", "var", "scale", "bias")]


UNITS = {
    "transformer": transformer(),
    "llama": llama(),
    "DenseNet": dense_net(),
    "fused QKV (3 h d)": {
        "heads": {("qkv", 1): units(3, outer=3, inner=4), ("out", 0): units(3, inner=4)},
        "dimensions": {("qkv", 1): units(4, outer=9), ("out", 0): units(4, outer=3)},
    },
    "fused QKV (h 3 d)": {
        "heads": {("qkv", 1): units(3, inner=12), ("out", 0): units(3, inner=4)},
        "query and key dimensions": {("qkv", 1): np.tile(cat(units(4), units(4), none(4)), 3)},
        "value dimensions": {("qkv", 1): np.tile(cat(none(8), units(4)), 3), ("out", 0): units(4, outer=3)},
    },
    "fused QKV (split)": {
        "heads": {("qkv", 1): units(3, outer=3, inner=4), ("out", 0): units(3, inner=4)},
        "query and key dimensions": {("qkv", 1): cat(units(4, outer=6), none(12))},
        "value dimensions": {("qkv", 1): cat(none(24), units(4, outer=3)), ("out", 0): units(4, outer=3)},
    },
    "LSTM": {
        "hidden units": {
            **every(units(6, outer=4), ("wx", 1), ("wh", 1), ("b", 0)),
            **every(units(6), ("wh", 0), ("out", 0)),
        }
    },
    "mixture of experts": {
        "expert width": every(units(6), ("up", 2), ("down", 1)),
        "experts": every(units(4), ("router", 1), ("up", 0), ("down", 0)),
    },
    "depthwise": {"channels": every(units(8), ("pw1", 3), ("dw", 3), ("pw2", 2))},
    "depth multiplier": {
        "channels": {("pw1", 3): units(6), ("dw", 3): units(6, inner=2), ("pw2", 2): units(6, inner=2)},
        "multiples": every(units(2, outer=6), ("dw", 3), ("pw2", 2)),
    },
    "channel shuffle": {
        "inputs of each group": {("pw", 3): units(4, outer=2), ("g1", 2): units(4)},
        "first groups": {
            **every(units(2, inner=4), ("pw", 3), ("g1", 3)),
            ("g2", 2): units(2, outer=2),
        },
        "second groups": {
            ("g1", 3): units(2, outer=2, inner=2),
            **every(units(2, inner=4), ("g2", 3), ("head", 2)),
        },
        "shuffled channels": {("g1", 3): units(2, outer=4), ("g2", 2): units(2, inner=2)},
        "outputs of each group": every(units(4, outer=2), ("g2", 3), ("head", 2)),
    },
    "squeeze-excite": {
        "channels": every(units(8), ("k1", 3), ("s1", 0), ("s2", 1), ("k2", 2)),
        "squeezed": every(units(4), ("s1", 1), ("s2", 0)),
    },
    "U-Net": {
        "skip": {**every(units(6), ("d1", 3), ("d2", 2)), ("u1", 2): cat(none(5), units(6))},
        "deep": every(units(8), ("d2", 3), ("up", 2)),
        "up": {("up", 3): units(5), ("u1", 2): cat(units(5), none(6))},
        "last": every(units(7), ("u1", 3), ("out", 2)),
    },
    "residual CNN": {
        "stream": {
            **every(units(8), ("stem", 3), ("k1", 2), ("k2", 3), *batch_norms("bn0", "bn2")),
            ("head", 0): units(8, outer=4),
        },
        "inside": every(units(6), ("k1", 3), ("k2", 2), *batch_norms("bn1")),
    },
}

# The angles of a RoPE table tell its pairs apart: they can be removed, but not renumbered.
TOLD_APART = {("llama", "RoPE pairs")}


def removed_by(groups, group, unit):
    """The entries that go with a unit of a group: {(path, axis): bool array}."""
    plan = plan_units(groups, {group.name: np.arange(group.size) != unit})
    return {(p, d): ~m for p, axes in plan.kept.items() for d, m in enumerate(axes) if m is not None}


@pytest.mark.parametrize("name", UNITS)
def test_groups_are_these_units_and_no_others(name):
    fn, params, inputs = plain_models.MODELS[name]()
    groups = jp.find_groups(fn, params, *inputs)
    assert len(groups) == len(UNITS[name])
    matched = set()
    for description, places in UNITS[name].items():
        size = 1 + max(ids.max() for ids in places.values())
        wanted = [{place: ids == unit for place, ids in places.items()} for unit in range(size)]
        same = [
            group.name
            for group in groups
            if group.size == size and all(equal(removed_by(groups, group, i), wanted[i]) for i in range(size))
        ]
        assert len(same) == 1, (description, str(groups))
        matched.add(same[0])
        members = {(member.path, member.axis) for member in groups[same[0]].members}
        assert members == set(places)
    assert len(matched) == len(groups)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[place], b[place]) for place in a)


def renumbered(params, places):
    """The parameters with unit i + 1 in the places of unit i."""
    out = dict(params)
    for (path, axis), ids in places.items():
        index = np.arange(len(ids))
        size = ids.max() + 1
        for unit in range(size):
            index[ids == unit] = np.flatnonzero(ids == (unit + 1) % size)
        out[path] = jnp.take(out[path], index, axis)
    return out


@pytest.mark.slow_beyond(4)
@pytest.mark.parametrize("name", UNITS)
def test_the_function_agrees_that_these_are_units(name):
    fn, params, inputs = plain_models.MODELS[name]()
    run = jax.jit(lambda params: fn(params, *inputs))
    expected = run(params)
    for description, places in UNITS[name].items():
        if (name, description) in TOLD_APART:
            continue
        assert difference(run(renumbered(params, places)), expected) < 1e-5, description
        for place, ids in places.items():
            fewer = {other: ids for other, ids in places.items() if other != place}
            if not fewer:  # all in one array: leave out its first units, the queries and not the keys
                rest = ids.copy()
                rest[np.flatnonzero(ids >= 0)[: ids.max() + 1]] = -1
                fewer = {place: rest}
            assert difference(run(renumbered(params, fewer)), expected) > 1e-3, (description, place)
