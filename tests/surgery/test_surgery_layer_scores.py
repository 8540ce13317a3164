"""Scores of branches against the hand-written model run with and without each of them."""

import branch_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

FN = models.language_model(models.pre_norm, lambda f: jax.checkpoint(jax.jit(f)))
TARGETS = jnp.asarray(np.random.default_rng(3).integers(0, 11, (2, 5)))


def loss_of(logits):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), TARGETS[..., None], -1).mean()


def loss_fn(params, ids):
    return loss_of(FN(params, ids))


def streams(params, ids):
    """The stream after each layer's parts, by hand."""
    x = params["embedding"][ids]
    found = [x]
    for p in params["layers"]:
        x = models.pre_norm(p, x, ("mlp",))
        found.append(x)
        x = models.pre_norm(p, x, ("attn",))
        found.append(x)
    return found


def influence(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return 1 - ((x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)).mean()


def found(depth=3):
    params = models.listed(depth)
    return jp.find_branches(FN, params, models.IDS), params


def test_block_influence_is_one_minus_the_cosine_of_the_streams():
    branches, params = found()
    at = streams(params, models.IDS)
    scores = jp.surgery.block_influence(branches, params, [models.IDS])
    for i in range(3):
        before, between, after = at[2 * i : 2 * i + 3]
        np.testing.assert_allclose(scores[f"layers/{i}/attn"], influence(before, between), atol=1e-6)
        np.testing.assert_allclose(scores[f"layers/{i}/mlp"], influence(between, after), atol=1e-6)
        np.testing.assert_allclose(scores[f"layers/{i}"], influence(before, after), atol=1e-6)
    batches = (models.IDS, models.IDS[:, :3])  # other shapes, and each counts alike
    second = jp.surgery.block_influence(branches, params, [models.IDS[:, :3]])
    both = jp.surgery.block_influence(branches, params, iter(batches))
    np.testing.assert_allclose(both["layers/1"], (scores["layers/1"] + second["layers/1"]) / 2, atol=1e-6)


def test_steps_of_a_scan_score_as_the_layers_that_they_are():
    branches, params = found()
    stacked = models.stacked()
    steps = jp.find_branches(models.scanned, stacked, models.IDS)
    scores = jp.surgery.block_influence(branches, params, [models.IDS])
    of_steps = jp.surgery.block_influence(steps, stacked, [models.IDS])
    losses = jp.surgery.loss_increase(branches, loss_fn, params, [models.IDS])
    scanned_loss = lambda p, ids: loss_of(models.scanned(p, ids))  # noqa: E731
    of_losses = jp.surgery.loss_increase(steps, scanned_loss, stacked, [models.IDS])
    of_taylor = jp.surgery.branch_taylor(steps, scanned_loss, stacked, [models.IDS])
    for i in range(3):
        np.testing.assert_allclose(of_steps[f"layers[{i}]"], scores[f"layers/{i}"], atol=1e-6)
        np.testing.assert_allclose(of_losses[f"layers[{i}]"], losses[f"layers/{i}"], atol=1e-6)

    for part in ("attn", "mlp"):  # in all steps: their influences are summed
        of_parts = [scores[f"layers/{i}/{part}"] for i in range(3)]
        np.testing.assert_allclose(of_steps[f"layers/{part}"], sum(of_parts), atol=1e-6)
        without = models.language_model(lambda p, x, _: models.pre_norm(p, x, (part,)))  # noqa: B023
        rise = loss_of(without(params, models.IDS)) - loss_fn(params, models.IDS)
        np.testing.assert_allclose(of_losses[f"layers/{part}"], rise, atol=1e-6)

    def scaled(gate, at):
        x = params["embedding"][models.IDS]
        for i, p in enumerate(params["layers"]):
            new = models.pre_norm(p, x)
            x = x + gate * (new - x) if i == at else new
        return loss_of(models.norm(params["ln"], x) @ params["head"])

    for i in range(3):
        np.testing.assert_allclose(
            of_taylor[f"layers[{i}]"], abs(jax.grad(scaled)(1.0, i)), rtol=1e-3, atol=1e-6
        )


def test_loss_increase_is_that_of_the_model_without_the_branch():
    branches, params = found()
    scores = jp.surgery.loss_increase(branches, loss_fn, params, [models.IDS])
    whole = loss_fn(params, models.IDS)
    for i in range(3):
        for names in (("attn",), ("mlp",), ("attn", "mlp")):
            name = f"layers/{i}/{names[0]}" if len(names) == 1 else f"layers/{i}"
            without = loss_of(FN(params, models.IDS, [(i, part) for part in names]))
            np.testing.assert_allclose(scores[name], without - whole, atol=1e-6)


def test_greedy_order_is_that_of_a_search_by_hand():
    branches, params = found(2)
    names = [(i, part) for i in range(2) for part in ("attn", "mlp")]
    gone = []
    while len(gone) < 3:
        left = [name for name in names if name not in gone]
        gone.append(min(left, key=lambda name: loss_of(FN(params, models.IDS, [*gone, name]))))
    scores = jp.surgery.greedy_loss_increase(branches, loss_fn, params, [models.IDS])
    assert sorted(scores, key=scores.__getitem__)[:3] == [f"layers/{i}/{part}" for i, part in gone]
    first = jp.surgery.greedy_loss_increase(branches, loss_fn, params, [models.IDS], number=1)
    singles = {n: float(loss_of(FN(params, models.IDS, [n]))) for n in names}
    assert sorted(first, key=first.__getitem__) == [
        f"layers/{i}/{part}" for i, part in sorted(names, key=singles.__getitem__)
    ]
    plan = jp.plan_layers(branches, params, score=scores, number=2)
    assert set(plan.removed) == {f"layers/{i}/{part}" for i, part in gone[:2]}


def test_greedy_by_parameters_divides_the_rise_by_what_is_removed():
    params = {
        "large": jnp.full((2, 8), 0.25),
        "down": jnp.full((8, 2), 0.25),
        "f": jnp.eye(2),
        "g": 3 * jnp.eye(2),
    }

    def loss_fn(p, x):
        x = x + x @ p["large"] @ p["down"]  # doubles its two equal entries
        x = x + x @ p["f"]
        return -(x + x @ p["g"]).mean()  # -16, or -8 without one of the first two, -4 without the last

    x = jnp.ones((1, 2))
    branches = jp.find_branches(loss_fn, params, x)
    assert branches["down"].size == 32 and branches["f"].size == 4
    by_params = jp.surgery.greedy_loss_increase(branches, loss_fn, params, [x], budget="params")
    assert by_params == {"down": 0.0, "f": 1.0, "g": 2.0}  # 8 / 32 before 8 / 4
    heavier = {**params, "f": 0.9 * jnp.eye(2)}
    assert jp.surgery.greedy_loss_increase(branches, loss_fn, heavier, [x])["f"] == 0
    assert jp.surgery.greedy_loss_increase(branches, loss_fn, heavier, [x], budget="flops")["down"] == 0


def test_greedy_keeps_what_is_excluded():
    branches, params = found(2)
    scores = jp.surgery.greedy_loss_increase(branches, loss_fn, params, [models.IDS], exclude="layers/0")
    assert scores["layers/0/attn"] == scores["layers/0/mlp"] == 2 and sorted(scores.values())[:2] == [0, 1]
    assert jp.plan_layers(branches, params, number=1, score=scores, exclude="layers/0").removed[0][7] == "1"


def test_greedy_passes_by_a_branch_without_which_the_loss_is_no_number():
    params = {"f": jnp.eye(2), "g": jnp.eye(2), "h": 2 * jnp.eye(2)}

    def loss_fn(p, x):
        for name in "hfg":
            x = x + x @ p[name]
        return jnp.sqrt(x.sum() - 10)  # 24, 12 without f or g, 8 without h

    branches = jp.find_branches(loss_fn, params, jnp.ones((1, 2)))
    scores = jp.surgery.greedy_loss_increase(branches, loss_fn, params, [jnp.ones((1, 2))], number=1)
    assert scores["h"] == 2


def test_taylor_is_the_derivative_by_a_factor_of_the_branch():
    branches, params = found(2)
    scores = jp.surgery.branch_taylor(branches, loss_fn, params, [models.IDS])

    def scaled(gate):  # the last map of the branch, by hand
        mlp = params["layers"][1]["mlp"]
        changed = {**mlp, "down": mlp["down"] * gate, "down_bias": mlp["down_bias"] * gate}
        layers = [params["layers"][0], {**params["layers"][1], "mlp": changed}]
        return loss_fn({**params, "layers": layers}, models.IDS)

    np.testing.assert_allclose(scores["layers/1/mlp"], abs(jax.grad(scaled)(1.0)), rtol=1e-4)


def test_norms_and_random_scores():
    branches, params = found(2)
    scores = jp.surgery.branch_norms(branches, params)
    leaves = jax.tree.leaves((params["layers"][0]["attn"], params["layers"][0]["ln_1"]))
    by_hand = np.sqrt(sum(np.sum(np.square(x)) for x in leaves))
    np.testing.assert_allclose(scores["layers/0/attn"], by_hand, rtol=1e-5)
    steps = jp.find_branches(models.scanned, models.stacked(2), models.IDS)
    of_steps = jp.surgery.branch_norms(steps, models.stacked(2))
    np.testing.assert_allclose(of_steps["layers[1]"], scores["layers/1"], rtol=1e-5)
    drawn = jp.surgery.random_branches(branches, jax.random.key(0))
    assert list(drawn) == branches.keys() and len(set(drawn.values())) == len(drawn)


def test_mistakes_are_told():
    branches, params = found(2)
    with pytest.raises(ValueError, match="`batches` is empty"):
        jp.surgery.block_influence(branches, params, [])
    for score in (jp.surgery.loss_increase, jp.surgery.branch_taylor, jp.surgery.greedy_loss_increase):
        with pytest.raises(ValueError, match="`batches` is empty"):
            score(branches, loss_fn, params, [])
    with pytest.raises(ValueError, match="must return one floating-point number"):
        jp.surgery.loss_increase(branches, FN, params, [models.IDS])
    with pytest.raises(ValueError, match="`loss_fn` has no branch 'layers/0/attn'"):
        jp.surgery.loss_increase(branches, lambda p, ids: p["embedding"][ids].mean(), params, [models.IDS])
    with pytest.raises(ValueError, match="must be what `find_branches` was given"):
        jp.surgery.block_influence(branches, {"head": params["head"]}, [models.IDS])
    with pytest.raises(ValueError, match=r"`number` must be in 1 to 3 \(4 branches\), got 4"):
        jp.surgery.greedy_loss_increase(branches, loss_fn, params, [models.IDS], number=4)
    with pytest.raises(ValueError, match="`budget` must be one of"):
        jp.surgery.greedy_loss_increase(branches, loss_fn, params, [models.IDS], budget="units")
    with pytest.raises(ValueError, match=r"`exclude` .*no branch"):
        jp.surgery.greedy_loss_increase(branches, loss_fn, params, [models.IDS], exclude="head")
    scores = (
        lambda p: jp.surgery.block_influence(branches, p, [models.IDS]),
        lambda p: jp.surgery.branch_norms(branches, p),
        lambda p: jp.surgery.loss_increase(branches, loss_fn, p, [models.IDS]),
        lambda p: jp.surgery.branch_taylor(branches, loss_fn, p, [models.IDS]),
    )
    for score in scores:
        with pytest.raises(TypeError, match="`params` must be arrays, got traced ones at 'embedding'"):
            jax.jit(score)(params)
        with pytest.raises(TypeError, match="got abstract ones at 'embedding'"):
            score(jax.eval_shape(lambda p: p, params))
        with pytest.raises(ValueError, match="must be what `find_branches` was given"):
            score({"head": params["head"]})
