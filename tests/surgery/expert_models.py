"""Mixtures of experts in the forms that JAX code writes, and what each computes for a single token, in NumPy.

Sizes are read from the parameters, so that each model also runs on parameters without some of the experts. `drop` is
added to the router's scores: minus infinity removes an expert by hand.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from plain_layers import weights

TOKENS, WIDTH, EXPERTS, HIDDEN = 9, 6, 5, 4


def sizes(p):
    return p["router"].shape[-1]


def top_2(p, x, drop):
    best, expert = lax.top_k(x @ p["router"] + drop, 2)
    return jax.nn.softmax(best), expert


def combined(p, weight, expert):
    return (jax.nn.one_hot(expert, sizes(p)) * weight[..., None]).sum(-2)


def dense(p, x, drop=0.0):
    """Every expert for every token; gates of 0 for those that are not chosen."""
    gates = combined(p, *top_2(p, x, drop))
    h = jax.nn.silu(jnp.einsum("td,edf->tef", x, p["up"]))
    return x + jnp.einsum("te,ted->td", gates, jnp.einsum("tef,efd->ted", h, p["down"]) + p["b"])


def three_operands(p, x, drop=0.0):
    """The product with the gates, the activations and the weights in one einsum."""
    gates = combined(p, *top_2(p, x, drop))
    h = jax.nn.silu(jnp.einsum("nd,edf->enf", x, p["up"]))
    return x + jnp.einsum("enf,efd,ne->nd", h, p["down"], gates)


def threshold(p, x, drop=0.0):
    """Comparison with the second largest, and a sum over weighted outputs."""
    logits = x @ p["router"] + drop
    smallest = lax.top_k(logits, 2)[0][:, -1:]
    gates = jax.nn.softmax(jnp.where(logits >= smallest, logits, -jnp.inf))
    h = jax.nn.silu(jnp.einsum("td,edf->tef", x, p["up"]))
    return x + (gates[:, :, None] * jnp.einsum("tef,efd->ted", h, p["down"])).sum(1)


def switch(p, x, drop=0.0, capacity=3):
    """Top 1 with a capacity: dispatch and combine tensors (tokens, experts, capacity)."""
    probs = jax.nn.softmax(x @ p["router"] + drop)
    mask = jax.nn.one_hot(jnp.argmax(probs, -1), sizes(p))
    place = (jnp.cumsum(mask, 0) * mask).sum(-1) - 1
    dispatch = mask[..., None] * jax.nn.one_hot(place.astype(int), capacity)[:, None]
    combine = dispatch * (probs * mask).sum(-1)[:, None, None]
    rows = jnp.einsum("tec,td->ecd", dispatch, x)
    h = jax.nn.silu(jnp.einsum("ecd,edf->ecf", rows, p["up"]))
    return x + jnp.einsum("tec,ecd->td", combine, jnp.einsum("ecf,efd->ecd", h, p["down"]) + p["b"][:, None])


def gshard(p, x, drop=0.0, capacity=4):
    """Top 2 by an argmax after another, the second one without the first choice."""
    logits = x @ p["router"] + drop
    probs = jax.nn.softmax(logits)
    first = jax.nn.one_hot(jnp.argmax(probs, -1), sizes(p))
    second = jax.nn.one_hot(jnp.argmax(jnp.where(first > 0, -jnp.inf, logits), -1), sizes(p))
    places = jnp.cumsum(first, 0) - first, jnp.cumsum(second, 0) - second + first.sum(0)
    total = (probs * (first + second)).sum(-1)
    combine = 0.0
    for mask, place in zip((first, second), places, strict=True):
        slot = jax.nn.one_hot((place * mask).sum(-1).astype(int), capacity)
        combine += ((probs * mask).sum(-1) / total)[:, None, None] * mask[:, :, None] * slot[:, None]
    rows = jnp.einsum("tec,td->ecd", (combine > 0).astype(x.dtype), x)
    h = jax.nn.silu(jnp.einsum("ecd,edf->ecf", rows, p["up"]))
    return x + jnp.einsum("tec,ecd->td", combine, jnp.einsum("ecf,efd->ecd", h, p["down"]))


def sorted_rows(p, x, drop=0.0):
    """Rows sorted by expert for `ragged_dot`, weighted there and added to their tokens."""
    best, expert = top_2(p, x, drop)
    expert = expert.ravel()
    order, counts = jnp.argsort(expert), jnp.bincount(expert, length=sizes(p))
    h = jax.nn.silu(lax.ragged_dot(x[order // 2], p["up"], counts))
    rows = lax.ragged_dot(h, p["down"], counts) + p["b"][expert[order]]
    return x.at[order // 2].add(rows * best.ravel()[order][:, None])


def unsorted_rows(p, x, drop=0.0):
    """Rows sorted by expert for `ragged_dot`, brought back to their tokens and weighted there."""
    best, expert = top_2(p, x, drop)
    order = jnp.argsort(expert.ravel())
    counts = jax.nn.one_hot(expert.ravel(), sizes(p), dtype=jnp.int32).sum(0)
    h = jax.nn.silu(lax.ragged_dot(jnp.repeat(x, 2, axis=0)[order], p["up"], counts))
    rows = lax.ragged_dot(h, p["down"], counts)
    back = rows[jnp.argsort(order)].reshape(*expert.shape, -1)
    return x + jnp.einsum("tkd,tk->td", back, best)


def gathered(p, x, drop=0.0):
    """The weights of each token's experts."""
    best, expert = top_2(p, x, drop)
    h = jax.nn.silu(jnp.einsum("td,tkdf->tkf", x, jnp.take(p["up"], expert, axis=0)))
    return x + jnp.einsum("tkf,tkfd,tk->td", h, p["down"][expert], best)


def shared_expert(p, x, drop=0.0):
    """Sigmoid scores, a bias that counts for the choice alone, scaled weights, and an expert for all tokens."""
    scores = jax.nn.sigmoid(x @ p["router"])
    _, expert = lax.top_k(scores + p["bias"] + drop, 2)
    weight = jnp.take_along_axis(scores, expert, -1)
    weight = 2.5 * weight / weight.sum(-1, keepdims=True)
    gates = jnp.zeros(scores.shape).at[jnp.arange(len(x))[:, None], expert].set(weight)
    h = jax.nn.silu(jnp.einsum("td,edf->etf", x, p["up"]))
    routed = jnp.einsum("te,etd->td", gates, jnp.einsum("etf,efd->etd", h, p["down"]))
    return x + jnp.tanh(x @ p["shared_up"]) @ p["shared_down"] + routed


def buffers(p, x, drop=0.0, capacity=3):
    """Top 1: rows are written to a buffer of each expert and read from it."""
    probs = jax.nn.softmax(x @ p["router"] + drop)
    expert, weight = jnp.argmax(probs, -1), jnp.max(probs, -1)
    mask = jax.nn.one_hot(expert, sizes(p), dtype=jnp.int32)
    place = jnp.take_along_axis(jnp.cumsum(mask, 0) - mask, expert[:, None], 1)[:, 0]
    rows = jnp.zeros((sizes(p), capacity, x.shape[1])).at[expert, place].add(x, mode="drop")
    h = jax.nn.silu(jnp.einsum("ecd,edf->ecf", rows, p["up"]))
    back = jnp.einsum("ecf,efd->ecd", h, p["down"]).at[expert, place].get(mode="fill", fill_value=0)
    return x + back * weight[:, None]


def one_by_one(p, x, drop=0.0, apply=lax.map):
    """Each token with the weights of its expert."""

    def token(x):
        probs = jax.nn.softmax(x @ p["router"] + drop)
        expert = jnp.argmax(probs)
        return x + probs[expert] * (jax.nn.silu(x @ p["up"][expert]) @ p["down"][expert])

    return apply(token, x)


def batched(p, x, drop=0.0):
    return one_by_one(p, x, drop, lambda token, x: jax.vmap(token)(x))


class Form(NamedTuple):
    """A model, the names of its parameters with an axis of experts, and what its router does."""

    fn: object
    members: str
    chosen: int = 2
    capacity: int = TOKENS * 2


FORMS = {
    "dense": Form(dense, "router up down b"),
    "sorted rows": Form(sorted_rows, "router up down b"),
    "capacity, top 1": Form(switch, "router up down b", 1, 3),
    "three operands": Form(three_operands, "router up down"),
    "threshold": Form(threshold, "router up down"),
    "capacity, top 2": Form(gshard, "router up down", 2, 4),
    "unsorted rows": Form(unsorted_rows, "router up down"),
    "gathered weights": Form(gathered, "router up down"),
    "shared expert": Form(shared_expert, "router up down bias"),
    "buffers": Form(buffers, "router up down", 1, 3),
    "token by token": Form(one_by_one, "router up down", 1),
    "tokens by vmap": Form(batched, "router up down", 1),
}


def parameters(form, seed=0):
    shapes = {
        "router": (WIDTH, EXPERTS),
        "up": (EXPERTS, WIDTH, HIDDEN),
        "down": (EXPERTS, HIDDEN, WIDTH),
        "b": (EXPERTS, WIDTH),
        "bias": (EXPERTS,),
    }
    shapes = {name: shapes[name] for name in form.members.split()}
    if "bias" in shapes:
        shapes |= {"shared_up": (WIDTH, HIDDEN), "shared_down": (HIDDEN, WIDTH)}
    return weights(seed, **shapes)


def inputs(seed=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(TOKENS, WIDTH)).astype(np.float32))


def by_hand(name, params, x):
    """Sum of weight * ||output|| and number of tokens of each expert, token by token in float64."""
    form = FORMS[name]
    p = {key: np.asarray(value, np.float64) for key, value in params.items()}
    x = np.asarray(x, np.float64)
    logits = x @ p["router"]
    sigmoid = 1 / (1 + np.exp(-logits))
    ranked = np.argsort(-(sigmoid + p["bias"] if "bias" in p else logits), axis=1)[:, : form.chosen]
    total, count, used = np.zeros(EXPERTS), np.zeros(EXPERTS), np.zeros(EXPERTS, int)
    places = [(t, k) for t in range(len(x)) for k in range(form.chosen)]
    if name == "capacity, top 2":  # all first choices come before the second ones
        places.sort(key=lambda place: place[1])
    for t, k in places:
        expert, mine = ranked[t, k], ranked[t]
        weight = np.exp(logits[t]) / np.exp(logits[t, mine] if form.chosen == 2 else logits[t]).sum()
        if "bias" in p:
            weight = 2.5 * sigmoid[t] / sigmoid[t, mine].sum()
        used[expert] += 1
        if used[expert] > form.capacity:
            continue
        h = x[t] @ p["up"][expert]
        output = (h / (1 + np.exp(-h))) @ p["down"][expert] + (p["b"][expert] if "b" in p else 0)
        total[expert] += weight[expert] * np.linalg.norm(output)
        count[expert] += 1
    return total, count
