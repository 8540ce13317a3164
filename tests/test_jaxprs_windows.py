"""Windows of a program: where they end, and which parameters are theirs alone."""

import jax
import jax.numpy as jnp
import pytest

from jaxprune.jaxprs import trace
from jaxprune.jaxprs.program import flatten
from jaxprune.jaxprs.windows import windows

W = jnp.ones((4, 4))


def parts(fn, params, size="branch"):
    """The parameters of each window, as names; a slice has its index."""
    traced = trace(fn, params, (jnp.ones((3, 4)),))
    program = flatten(traced, set(range(len(traced.avals))))
    found = windows(program, size)
    steps = [i for window in found for i in window.steps]
    assert len(set(steps)) == len(steps)
    return [[name(traced.paths, part) for part in window.parts.values()] for window in found]


def name(paths, part):
    return paths[part.leaf] + "".join(map(str, part.at))


def pre_norm(p, x):
    x = x + jnp.tanh(x * p["norm"] @ p["q"]) @ p["o"]
    return x + jnp.tanh(x @ p["up"]) @ p["down"]


def parallel(p, x):
    h = x * p["norm"]
    return x + jnp.tanh(h @ p["q"]) @ p["o"] + jnp.tanh(h @ p["up"]) @ p["down"]


def siblings_first(p, x):
    return (x @ p["o"] + x @ p["down"]) + x


def post_norm(p, x):
    x = (1.5 * x + x @ p["o"]) * p["norm"]
    return (1.5 * x + x @ p["down"]) * p["last"]


def projected(p, x):
    x = x @ p["skip"] + jnp.tanh(x @ p["up"]) @ p["down"]
    return x + x @ p["o"]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (pre_norm, [["norm", "o", "q"], ["down", "up"]]),
        (parallel, [["norm", "o", "q"], ["down", "up"]]),
        (siblings_first, [["down", "o"]]),
        (post_norm, [["o"], ["down", "norm"]]),
        (projected, [["down", "skip", "up"], ["o"]]),
    ],
)
def test_windows_end_with_residual_branches(fn, expected):
    named = ["norm", "last"]
    params = {n: jnp.ones(4) if n in named else W for each in expected for n in each}
    assert parts(fn, {"last": jnp.ones(4), **params} if fn is post_norm else params) == expected


def test_a_window_of_several_branches_and_of_weights_without_branches():
    params = dict.fromkeys(("q", "o", "up", "down"), W) | {"norm": jnp.ones(4)}
    assert parts(pre_norm, params, 2) == [["down", "norm", "o", "q", "up"]]
    chain = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]  # noqa: E731
    chained = dict.fromkeys("abc", W)
    assert parts(chain, chained) == [["a", "b"], ["c"]]
    assert parts(chain, chained, 1) == [["a"], ["b"], ["c"]]


def test_scanned_layers_have_slices_and_what_is_read_twice_belongs_to_none():
    def fn(p, x):
        return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w + p["all"]), None), x, p["w"])[0]

    found = parts(fn, {"w": jnp.ones((2, 4, 4)), "all": jnp.ones(4)})
    assert found == [["w0"], ["w1"]]


@pytest.mark.parametrize("additive", ["where", "scaled"])
def test_a_mask_that_is_added_to_attention_is_no_stream(additive):
    def attention(p, x, hidden):
        scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x @ p["k"])[:, None] + hidden
        return x + jnp.einsum("bhqk,bkd->bqd", jax.nn.softmax(scores), x @ p["v"]) @ p["o"]

    def fn(params, x, mask):
        seen = mask[:, None, None, :]
        hidden = jnp.where(seen > 0, 0.0, -jnp.inf) if additive == "where" else (1 - seen) * -1e9
        for p in params:
            x = attention(p, x, hidden)
        return x

    params = [dict.fromkeys(("q", "k", "v", "o"), W) for _ in range(3)]
    traced = trace(fn, params, (jnp.ones((2, 3, 4)), jnp.ones((2, 3))))
    found = windows(flatten(traced, set(range(len(traced.avals)))))
    assert [sorted(name(traced.paths, part) for part in w.parts.values()) for w in found] == [
        [f"{i}/{leaf}" for leaf in ("k", "o", "q", "v")] for i in range(3)
    ]
