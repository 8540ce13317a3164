"""Scores of units by their activations."""

import jax
import jax.numpy as jnp
import numpy as np
import plain_layers
import plain_models
import pytest
from jax import lax
from plain_layers import data, weights

import jaxprune as jp
from jaxprune.surgery import (
    activation_scores,
)


def test_activations_are_what_the_next_layer_sums_over(hand):
    params, groups = hand
    x = jnp.array([[1.0, -1.0]])  # 3 - 4 + 0 = -1;  1 - 2 + 2 = 1
    scores = activation_scores(groups, params, [x, (2 * x,)])  # then -2 and 0
    expected = [(np.tanh(1) + np.tanh(2)) / 2, np.tanh(1) / 2]
    np.testing.assert_allclose(scores["b[0]"], expected, rtol=1e-6)
    squares = [(np.tanh(1) ** 2 + np.tanh(2) ** 2) / 2, np.tanh(1) ** 2 / 2]
    rms = activation_scores(groups, params, iter([x, 2 * x]), "rms")
    np.testing.assert_allclose(rms["b[0]"], np.sqrt(squares), rtol=1e-6)


@pytest.mark.slow
def test_activations_of_heads_and_of_query_and_key_dimensions():
    fn, params, inputs = plain_models.fused_qkv("split")
    groups = jp.find_groups(fn, params, *inputs)
    scores = activation_scores(groups, params, [inputs])
    heads = next(group for group in groups if group.size == 3)
    qk, v = [group for group in groups if group.size == 4]
    if len(qk.members) < len(v.members):  # only the values' dimension is in `out`
        v, qk = qk, v
    q, k, value = (a.reshape(2, 3, 3, 4) for a in jnp.split(inputs[0] @ params["qkv"], 3, -1))
    if any(member.path == "out" for member in qk.members):
        qk, v = v, qk
    mixed = plain_layers.attention(q, k, value)
    np.testing.assert_allclose(scores[heads.name], jnp.abs(mixed).mean((0, 1, 3)), rtol=1e-5)
    both = (jnp.abs(q) + jnp.abs(k)).mean((0, 1, 2)) / 2
    np.testing.assert_allclose(scores[qk.name], both, rtol=1e-5)
    np.testing.assert_allclose(scores[v.name], jnp.abs(mixed).mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.slow
def test_activations_inside_scans_and_derivative_rules():
    """An LSTM: its hidden state goes into the next step and into the head."""
    fn, params, inputs = plain_models.lstm()
    groups = jp.find_groups(fn, params, *inputs)
    (scores,) = activation_scores(groups, params, [inputs]).by_group.values()

    def states(p, x):
        return fn({**p, "out": jnp.eye(6)}, x)

    hs = jnp.abs(states(params, *inputs))  # (5 steps, 2 samples, 6)
    seen = hs.sum((0, 1)) + hs[:-1].sum((0, 1))  # the first step sees zeros
    np.testing.assert_allclose(scores, seen / (2 * 5 * 2), rtol=1e-5)


def test_activations_of_scanned_layers_leave_the_weights_out():
    fn, params, inputs = plain_models.scanned_layers()
    groups = jp.find_groups(fn, params, *inputs)
    scores = activation_scores(groups, params, [inputs])
    x, hidden, stream = inputs[0] @ params["in"], [], []
    for up, down in zip(params["up"], params["down"], strict=True):
        stream.append(x)
        hidden.append(jnp.tanh(x @ up))
        x = x + hidden[-1] @ down
    by_size = {group.size: scores[group.name] for group in groups}
    np.testing.assert_allclose(by_size[6], jnp.abs(jnp.stack(hidden)).mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(by_size[5], jnp.abs(jnp.stack([*stream, x])).mean((0, 1)), rtol=1e-5)


def test_activations_in_branches_count_only_where_they_ran():
    params = weights(w=(3, 4), a=(4, 2), b=(4, 2))

    def fn(p, x):
        h = jnp.tanh(x @ p["w"])
        return lax.cond(x.sum() > 0, lambda h: h @ p["a"], lambda h: (2 * h) @ p["b"], h)

    x = data(5, 3)
    groups = jp.find_groups(fn, params, x)
    for sign in (1, -1):
        x = sign * jnp.abs(x)
        expected = jnp.abs(jnp.tanh(x @ params["w"])).mean(0) * (1 if sign > 0 else 2)
        (scores,) = activation_scores(groups, params, [x]).by_group.values()
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_groups_that_no_product_sums_over_have_no_activations():
    fn, params, inputs = plain_models.vmapped_members()  # a mean runs over the members
    groups = jp.find_groups(fn, params, *inputs)
    scores = activation_scores(groups, params, [inputs])
    assert [groups[name].size for name in scores.by_group] == [6]


def test_activations_say_what_is_wrong(hand):
    params, groups = hand
    np.testing.assert_allclose(  # three rows alike, where the groups were found with one
        activation_scores(groups, params, [jnp.ones((3, 2))])[groups.groups[0].name],
        activation_scores(groups, params, [jnp.ones((1, 2))])[groups.groups[0].name],
    )
    with pytest.raises(ValueError, match="has no batch"):
        activation_scores(groups, params, [])
    with pytest.raises(ValueError, match="`statistic` must be"):
        activation_scores(groups, params, [jnp.ones((1, 2))], "max")
    with pytest.raises(ValueError, match="it lacks 'b'"):
        activation_scores(groups, {k: v for k, v in params.items() if k != "b"}, [jnp.ones((1, 2))])


@pytest.mark.slow
def test_activations_at_any_batch_size():
    params = {
        "up": jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), jnp.float32),
        "down": jnp.ones((8, 3)),
    }
    x = jnp.asarray(np.random.default_rng(1).normal(size=(12, 6)), jnp.float32)
    fn = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]  # noqa: E731
    hidden = np.maximum(np.asarray(x, np.float64) @ np.asarray(params["up"], np.float64), 0)
    expected = {"mean_abs": hidden.mean(0), "rms": np.sqrt((hidden**2).mean(0))}
    for example in (x[:4], jax.ShapeDtypeStruct((6,), jnp.float32)):
        groups = jp.find_groups(fn, params, example)
        for statistic, wanted in expected.items():
            batches = [x[:4], (x[4:5],), x[5:]]  # means over all rows, not of batches
            scores = jp.surgery.activation_scores(groups, params, batches, statistic)
            np.testing.assert_allclose(scores["down[0]"], wanted, rtol=1e-5)


def test_activations_where_the_groups_are_others_are_an_error():
    params = {"up": jnp.ones((6, 8)), "down": jnp.ones((8, 3))}

    def fn(p, x):
        hidden = x @ p["up"]
        return hidden @ p["down"] if len(x) == 2 else (hidden, hidden @ p["down"])

    groups = jp.find_groups(fn, params, jnp.ones((2, 6)))
    with pytest.raises(ValueError, match=r"at which `fn` has no group 'down\[0\]'"):
        jp.surgery.activation_scores(groups, params, [jnp.ones((3, 6))])
