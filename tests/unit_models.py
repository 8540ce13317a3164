"""Small models whose units can be removed, and the best that can be made of what remains, in float64."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.surgery import plan_units


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def mlp(params, x):
    return jnp.tanh(x @ params["up"] + params["up_bias"]) @ params["down"] + params["bias"]


def mlp_params(seed, inputs=6, hidden=8, outputs=5):
    rng = np.random.default_rng(seed)
    shapes = {"up": (inputs, hidden), "up_bias": (hidden,), "down": (hidden, outputs), "bias": (outputs,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def heads(params, x):
    """Units of 3 inputs each: a head's values, which depend on each other."""
    h = jnp.einsum("ni,ihd->nhd", x, params["value"])
    return jnp.einsum("nhd,hdo->no", jnp.tanh(h) * jnp.sum(h**2, -1, keepdims=True), params["out"])


def heads_params(seed, inputs=6, n=5, dim=3, outputs=4):
    return {"value": draw(seed, inputs, n, dim), "out": draw(seed + 1, n, dim, outputs)}


def group_of(groups, path, axis):
    (group,) = groups.of(path, axis)
    return group.name


def plan_of(groups, name, gone):
    """The plan that takes these units of one group."""
    keep = np.ones(groups[name].size, bool)
    keep[list(gone)] = False
    return plan_units(groups, {name: keep})


def least_error(h, w, gone):
    """Error in H when rows go and the others are refitted, in float64; and the refitted weights."""
    gone = np.asarray(gone, int)
    kept = np.setdiff1d(np.arange(len(h)), gone)
    change = np.zeros_like(w)
    change[gone] = -w[gone]
    change[kept] = np.linalg.solve(h[np.ix_(kept, kept)], h[np.ix_(kept, gone)] @ w[gone])
    return np.sum(change * (h @ change)), w + change


def refitted(here, there, w0, kept, damping):
    """min ||here_K W - there W0||^2 + damping, in float64; the rows that go are zero."""
    here, w0 = here[:, kept], np.asarray(w0, np.float64)
    gram = here.T @ here
    penalty = damping * np.diag(np.diag(gram))
    w = np.zeros_like(w0)
    w[kept] = np.linalg.solve(gram + penalty, here.T @ (there @ w0) + penalty @ w0[kept])
    return w


def damped(gram, damping):
    gram = np.asarray(gram, np.float64)
    return gram + damping * np.diag(np.diag(gram))


def conv_net(params, x):
    def conv(x, w, groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    h = jnp.tanh(conv(x, params["first"]))
    if "depthwise" in params:
        h = jnp.tanh(conv(h, params["depthwise"], 6))
    return conv(h, params["second"])


def conv_params(seed, depthwise=False):
    params = {"first": draw(seed, 3, 3, 2, 6), "second": draw(seed + 1, 3, 3, 6, 4)}
    return params | ({"depthwise": draw(seed + 2, 3, 3, 1, 6)} if depthwise else {})
