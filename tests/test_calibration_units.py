"""One-shot removal of units: their scores by structured OBS."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from unit_models import conv_net, conv_params, damped, draw, heads, heads_params, least_error, mlp, mlp_params

import jaxprune as jp
from jaxprune.surgery import obs_scores


def greedy(h, w, units):
    """Units in their order of removal and the error up to each, every candidate refitted by itself."""
    gone, errors = [], []
    for _ in units:
        left = [u for u in range(len(units)) if u not in gone]
        tried = [least_error(h, w, np.concatenate([units[g] for g in [*gone, u]]))[0] for u in left]
        gone.append(left[int(np.argmin(tried))])
        errors.append(min(tried))
    return gone, np.array(errors)


@pytest.mark.slow
def test_hand_worked_scores():
    """The third unit is the sum of the first two: free at first, and then nothing makes up for the others."""
    params = {
        "up": jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
        "down": jnp.array([[2.0], [1.0], [3.0]]),
    }
    fn = lambda p, x: (x @ p["up"]) @ p["down"]  # noqa: E731  (5 x_0 + 4 x_1 in all)
    x = jnp.eye(2)
    groups = jp.find_groups(fn, params, x)
    stats = jp.calibrate(fn, params, [x], moments="full")
    scores = obs_scores(groups, params, stats, damping=1e-4)["down[0]"]
    order = np.argsort(scores)
    # The first to go is free (it is a combination of the others); of what is left, one alone is best refitted.
    # x_0 and x_0 + x_1 with target (5, 4): without x_0 the other gets 4.5 and leaves 2 * 0.5^2 of 41.
    assert scores[order[0]] < 1e-3
    np.testing.assert_allclose(scores[order[1]], 0.5 / 41, rtol=3e-2)
    np.testing.assert_allclose(scores[order[2]], 1, rtol=2e-3)
    assert order[2] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("n", "dim"), [(8, 1), (5, 3), (70, 1)])  # the last: several blocks
def test_scores_are_those_of_greedy_removal_in_float64(n, dim):
    params, x = heads_params(0, n=n, dim=dim), draw(5, 6 * n * dim, 6)
    groups = jp.find_groups(heads, params, x)
    stats = jp.calibrate(heads, params, [x], moments="full")
    gram = np.asarray(stats["out"].moments[0].second[0], np.float64)
    (matrix,) = stats["out"].matrices  # its inputs may run over (head, dim) or (dim, head)
    w = matrix.of(np.asarray(params["out"], np.float64))[0]
    units = matrix.of(np.arange(n).reshape(n, 1, 1) * np.ones(params["out"].shape, int))[0, :, 0]
    order, errors = greedy(damped(gram, 0.02), w, [np.flatnonzero(units == u) for u in range(n)])
    name = next(group.name for group in groups if group.size == n)
    scores = obs_scores(groups, params, stats, damping=0.02)[name]
    np.testing.assert_array_equal(np.argsort(scores), order)
    np.testing.assert_allclose(scores[order], errors / np.sum(w * (gram @ w)), rtol=2e-4, atol=1e-6)


@pytest.mark.slow
def test_first_removal_is_the_best_of_all_and_the_search_is_near_the_best_subsets():
    params, x = mlp_params(1), draw(2, 100, 6)
    groups, stats = jp.find_groups(mlp, params, x), jp.calibrate(mlp, params, [x], moments="full")
    gram = np.asarray(stats["down"].moments[0].second[0], np.float64)
    w = np.asarray(params["down"], np.float64)
    scores = obs_scores(groups, params, stats)["down[0]"]
    order, energy = np.argsort(scores), np.sum(w * (gram @ w))
    for count in range(1, 8):
        found = least_error(damped(gram, 0.01), w, order[:count])[0]
        subsets = itertools.combinations(range(8), count)
        best = min(least_error(damped(gram, 0.01), w, subset)[0] for subset in subsets)
        np.testing.assert_allclose(scores[order[count - 1]] * energy, found, rtol=1e-3)
        assert best * (1 - 1e-9) <= found <= (1 if count == 1 else 1.5) * best * (1 + 1e-9)


@pytest.mark.slow
def test_several_consumers_are_averaged_and_those_of_one_activation_share_an_inverse():
    params = {"up": draw(0, 4, 7), "a": draw(1, 7, 3), "b": 10 * draw(2, 7, 2), "c": draw(3, 7, 3)}

    def fn(p, x):
        h = jnp.tanh(x @ p["up"])
        return h @ p["a"], h @ p["b"], jnp.square(h) @ p["c"]

    x = draw(4, 50, 4)
    groups, stats = jp.find_groups(fn, params, x), jp.calibrate(fn, params, [x], moments="full")
    scores = obs_scores(groups, params, stats)["a[0]"]
    left, expected = list(range(7)), []
    hs = {"a": np.tanh(np.asarray(x, np.float64) @ np.asarray(params["up"], np.float64))}
    hs |= {"b": hs["a"], "c": hs["a"] ** 2}

    def error(gone):
        total = 0
        for name, h in hs.items():
            gram, w = h.T @ h, np.asarray(params[name], np.float64)
            total += least_error(damped(gram, 0.01), w, gone)[0] / np.sum(w * (gram @ w))
        return total / 3

    gone = []
    while left:
        unit = min(left, key=lambda u: error([*gone, u]))
        gone.append(unit)
        left.remove(unit)
        expected.append(error(gone))
    np.testing.assert_array_equal(np.argsort(scores), gone)
    np.testing.assert_allclose(scores[gone], expected, rtol=1e-3)


@pytest.mark.slow
def test_plans_are_nested_and_dead_units_go_first():
    params = mlp_params(3)
    params["up"] = params["up"].at[:, jnp.array([2, 5])].set(0)
    params["up_bias"] = params["up_bias"].at[jnp.array([2, 5])].set(0)
    x = draw(4, 60, 6)
    groups, stats = jp.find_groups(mlp, params, x), jp.calibrate(mlp, params, [x], moments="full")
    scores = obs_scores(groups, params, stats)
    assert sorted(np.argsort(scores["down[0]"])[:2]) == [2, 5]
    before = np.zeros(8, bool)
    for share in np.arange(1, 8) / 8:
        plan = jp.plan_removal(groups, params, share, score=scores, budget="units")
        gone = ~plan.kept["down"][0]
        assert gone.sum() == round(share * 8) and (gone >= before).all()
        before = gone
    plan = jp.plan_removal(groups, params, 0.4, score=scores, budget="flops", round_to=4)
    assert plan.small_shapes["down"] == (4, 5)


@pytest.mark.slow
def test_global_scope_removes_up_to_one_relative_error():
    """Of two layers the one with redundant units loses more."""
    params = {"a": draw(0, 3, 8), "b": draw(1, 8, 8), "c": draw(2, 8, 2)}
    params["a"] = params["a"].at[:, 4:].set(params["a"][:, :4])

    def fn(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    x = draw(3, 80, 3)
    groups, stats = jp.find_groups(fn, params, x), jp.calibrate(fn, params, [x], moments="full")
    scores = obs_scores(groups, params, stats, damping=1e-4)
    plan = jp.plan_removal(groups, params, 0.25, "global", scores, budget="units", normalize=None)
    assert plan.small_shapes["b"] == (4, 8)
    assert sorted(np.flatnonzero(~plan.kept["b"][0]) % 4) == [0, 1, 2, 3]


@pytest.mark.slow
def test_scan_stacked_layers_count_all():
    w, x = draw(0, 3, 4, 6), draw(1, 40, 4)
    params = {"up": w, "down": draw(2, 3, 6, 4)}

    def fn(p, x):
        def body(h, layer):
            return h + jnp.tanh(h @ layer["up"]) @ layer["down"], None

        return lax.scan(body, x, p)[0]

    groups, stats = jp.find_groups(fn, params, x), jp.calibrate(fn, params, [x], moments="full")
    scores = obs_scores(groups, params, stats)
    (hidden,) = [g for g in groups if g.size == 6]
    grams = [np.asarray(m.second[0], np.float64) for m in stats["down"].moments]
    down = np.asarray(params["down"], np.float64)
    energies = [np.sum(w * (g @ w)) for g, w in zip(grams, down, strict=True)]

    def error(unit):
        each = zip(grams, down, energies, strict=True)
        return np.mean([least_error(damped(g, 0.01), w, [unit])[0] / e for g, w, e in each])

    errors = [error(unit) for unit in range(6)]
    first = int(np.argmin(errors))
    assert np.argmin(scores[hidden.name]) == first
    np.testing.assert_allclose(scores[hidden.name][first], min(errors), rtol=1e-3)


@pytest.mark.slow
def test_channels_of_a_convolution_behind_a_depthwise_one():
    params, x = conv_params(0, True), draw(3, 4, 6, 6, 2)
    groups, stats = jp.find_groups(conv_net, params, x), jp.calibrate(conv_net, params, [x], moments="full")
    (name,) = [g.name for g in groups if g.size == 6]
    scores = obs_scores(groups, params, stats)[name]
    gram = np.asarray(stats["second"].moments[0].second[0], np.float64)  # of patches: (window, channel)
    w = np.asarray(params["second"], np.float64).reshape(54, 4)
    order, errors = greedy(damped(gram, 0.01), w, np.arange(54).reshape(9, 6).T)
    np.testing.assert_array_equal(np.argsort(scores), order)
    np.testing.assert_allclose(scores[order], errors / np.sum(w * (gram @ w)), rtol=1e-3)


@pytest.mark.slow
def test_groups_that_feed_no_weight_must_be_excluded():
    def fn(p, x):  # queries and keys meet each other, values meet `out`
        scores = (x @ p["q"]) @ (x @ p["k"]).T
        return jax.nn.softmax(scores) @ (x @ p["v"]) @ p["out"]

    params, x = (
        {"q": draw(0, 4, 3), "k": draw(1, 4, 3), "v": draw(2, 4, 6), "out": draw(3, 6, 2)},
        draw(4, 9, 4),
    )
    groups, stats = jp.find_groups(fn, params, x), jp.calibrate(fn, params, [x], moments="full")
    scores = obs_scores(groups, params, stats)
    assert list(scores.by_group) == ["out[0]"]
    with pytest.raises(ValueError, match=r"`score` has no scores for group '[kq]\[1\]'"):
        jp.plan_removal(groups, params, 0.5, score=scores)
    assert jp.plan_removal(groups, params, 0.5, score=scores, budget="units", exclude="q").small_shapes[
        "out"
    ] == (
        3,
        2,
    )


@pytest.mark.slow
def test_an_input_of_two_units_has_no_score():
    def fn(p, x):  # products of pairs of units, summed with a weight each
        h = jnp.tanh(x @ p["up"])
        return jnp.einsum("ni,nj->nij", h, h).reshape(len(x), -1) @ p["down"].reshape(16, 2)

    params = {"up": draw(0, 3, 4), "down": draw(1, 4, 4, 2)}
    groups = jp.find_groups(fn, params, draw(2, 5, 3))
    stats = jp.calibrate(fn, params, [draw(2, 5, 3)], moments="full")
    assert [g.size for g in groups] == [4]
    with pytest.raises(ValueError, match="no weight that multiplies the units"):
        obs_scores(groups, params, stats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moments": "diagonal"}, "moments='full'"),
        ({"damping": -1.0}, "`damping` must not be negative"),
        ({"params": {"up": jnp.ones((6, 8))}}, "it lacks"),
        ({"shape": (8, 4)}, r"they have 'down' of shape \(8, 5\)"),
    ],
)
def test_mistakes_in_scores_are_named(change, message):
    params, x = mlp_params(0), draw(1, 20, 6)
    stats = jp.calibrate(mlp, params, [x], moments=change.get("moments", "full"))
    if "shape" in change:
        params = mlp_params(0, outputs=4)
    groups = jp.find_groups(mlp, params, x)
    with pytest.raises(ValueError, match=message):
        obs_scores(groups, change.get("params", params), stats, damping=change.get("damping", 0.01))
