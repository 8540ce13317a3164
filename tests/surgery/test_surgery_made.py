"""Only units that parameters make are offered: zeroing them removes them wherever they are summed."""

import jax
import jax.numpy as jnp
import pytest
from checks import random_plan
from jax import lax
from plain_layers import data, weights

import jaxprune as jp


def read(p, copies):
    """Reads copies by a weight, and once more without it."""
    return copies @ p["w"] + (copies * copies).mean(-1, keepdims=True)


# Functions whose units have no parameter of their own, the shapes of their parameters, the groups that remain.
COPIES = {
    "repeated": (lambda p, x: read(p, jnp.repeat(x, 2, -1)), {"w": (12, 2)}, []),
    "tiled": (lambda p, x: read(p, jnp.tile(x, 2)), {"w": (12, 2)}, []),
    "broadcast": (
        lambda p, x: read(p, jnp.broadcast_to(x[..., None], (4, 6, 3)).reshape(4, 18)),
        {"w": (18, 2)},
        [],
    ),
    "only read by a weight": (lambda p, x: jnp.repeat(x, 2, -1) @ p["w"], {"w": (12, 2)}, []),
    "inside a call": (lambda p, x: jax.jit(read)(p, jnp.repeat(x, 2, -1)), {"w": (12, 2)}, []),
    "carried by a scan": (
        lambda p, x: lax.scan(lambda c, _: (0.5 * c, read(p, c)), jnp.repeat(x, 2, -1), None, 2)[1],
        {"w": (12, 2)},
        [],
    ),
    "with a learned scale": (
        lambda p, x: read(p, jnp.repeat(x * p["g"], 2, -1)),
        {"g": (6,), "w": (12, 2)},
        [],
    ),
    "with a learned bias": (
        lambda p, x: read(p, jnp.repeat(x, 2, -1) + p["b"]),
        {"b": (12,), "w": (12, 2)},
        [],
    ),
    "read by a normalised weight": (
        lambda p, x: copies_by_unit_rows(p, jnp.repeat(x, 2, -1)),
        {"w": (12, 2)},
        [],
    ),
    "of hidden units": (
        lambda p, x: read(p, jnp.repeat(jnp.tanh(x @ p["a"]), 2, -1)),
        {"a": (6, 5), "w": (10, 2)},
        [5],
    ),
    "beside scaled copies": (
        lambda p, x: stacked(p, jnp.repeat(jnp.tanh(x @ p["a"]), 2, -1)),
        {"a": (6, 5), "s": (10,), "w": (10, 2)},
        [5],
    ),
    "features of constants": (lambda p, x: read(p, jnp.sin(x[:, :1] * jnp.arange(8.0))), {"w": (8, 2)}, []),
    "low rank": (lambda p, x: x @ (p["a"] @ p["w"]), {"a": (6, 4), "w": (4, 2)}, [4]),
    "recurrent": (
        lambda p, x: (
            lax.scan(lambda h, row: (normalised(row @ p["a"] + h @ p["r"]), None), jnp.zeros(8), x)[0]
            @ p["w"]
        ),
        {"a": (6, 8), "r": (8, 8), "w": (8, 2)},
        [8],
    ),
    "chosen by copies": (
        lambda p, x: read(p, jnp.where(jnp.repeat(x, 2, -1) > 0, x @ p["a"], 0)),
        {"a": (6, 12), "w": (12, 2)},
        [2],
    ),
    "axes of size 0 and 1": (
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["w"] + x @ p["none"] @ p["of"] + x @ p["one"],
        {"a": (6, 4), "w": (4, 2), "none": (6, 0), "of": (0, 2), "one": (6, 1)},
        [4],
    ),
}


def copies_by_unit_rows(p, copies):
    unit = p["w"] / jnp.linalg.norm(p["w"], axis=0)
    return copies @ unit + (copies * copies).mean(-1, keepdims=True)


def stacked(p, copies):
    both = jnp.stack([copies, copies * p["s"]])
    return jnp.einsum("kbc,co->bo", both, p["w"]) + (both * both).mean((0, 2))[:, None]


def normalised(h):
    return jnp.tanh(h * lax.rsqrt(1 + (h * h).mean(-1, keepdims=True)))


@pytest.mark.slow_beyond(4)
@pytest.mark.parametrize("name", COPIES)
def test_only_units_that_parameters_make_are_offered(name):
    fn, shapes, sizes = COPIES[name]
    params, x = weights(**shapes), data(4, 6)
    groups = jp.find_groups(fn, params, x)
    assert [group.size for group in groups] == sizes, str(groups)
    report = random_plan(groups).verify(fn, params, x)
    assert report.masked < 1e-5 and report.zeroed < 1e-5, str(report)


def test_the_table_says_why_copies_are_not_offered():
    fn, shapes, _ = COPIES["repeated"]
    groups = jp.find_groups(fn, weights(**shapes), data(4, 6))
    reasons = {frozen.reason: frozen.members for frozen in groups.frozen}
    (member,) = next(members for reason, members in reasons.items() if "no parameter makes" in reason)
    assert str(member) == "w[0: 6 x [2]]"
