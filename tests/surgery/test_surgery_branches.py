"""Branches: which are found in models whose branches are known, what they free, and what is refused."""

import branch_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

X = jnp.ones((2, 8))
CALLS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "jit in remat": lambda f: jax.checkpoint(jax.jit(f)),
}


def names(fn, params, *inputs):
    return jp.find_branches(fn, params, *inputs).keys()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_attention_mlp_and_whole_layers_are_found_through_calls(call):
    found = jp.find_branches(models.language_model(models.pre_norm, call), models.listed(2), models.IDS)
    assert found.keys() == [f"layers/{i}{part}" for i in range(2) for part in ("/attn", "/mlp", "")]
    assert [b.size for b in found][:3] == [4 * 64 + 16, 2 * 128 + 24 + 16, 4 * 64 + 2 * 128 + 24 + 32]
    assert [b.inside for b in found][:3] == ["layers/0", "layers/0", ""]
    # q, k, v, o, and two products of positions by positions; up and down.
    assert [b.flops for b in found][:2] == [2 * 10 * (4 * 64 + 2 * 5 * 8), 2 * 10 * 2 * 128]
    assert found["layers/1/mlp"].added_to == "the sum after layers/1/attn"
    assert "branch_models.py" in found["layers/0/attn"].source


def test_a_norm_after_the_sum_stays_and_a_norm_of_two_parallel_branches_goes_with_both():
    of_post = jp.find_branches(models.language_model(models.post_norm), models.listed(2), models.IDS)
    assert of_post["layers/0/attn"].size == 4 * 64
    assert of_post["layers/0"].params == tuple(p for p in of_post["layers/0"].params if "ln" not in p)
    found = jp.find_branches(models.language_model(models.parallel), models.listed(2), models.IDS)
    assert found["layers/0/attn"].size == 4 * 64
    both = found.removed(["layers/0/attn", "layers/0/mlp"])
    assert both.size == found["layers/0/attn"].size + found["layers/0/mlp"].size + 2 * 8


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_sums_of_three_give_both_branches_in_every_order(order):
    params = models.arrays({"f": (8, 8), "g": (8, 8), "head": (8, 2)})

    def fn(p, x):
        terms = (x, jnp.tanh(x @ p["f"]), jnp.tanh(x @ p["g"]))
        first, second, third = (terms[i] for i in order)
        return (first + second + third) @ p["head"]

    assert {"f", "g"} <= set(names(fn, params, X))


def test_a_bias_belongs_to_its_branch_and_a_branch_that_is_subtracted_is_one():
    params = models.arrays({"f": {"kernel": (8, 8), "bias": (8,)}, "g": (8, 8), "head": (8, 2)})

    def fn(p, x):
        x = x - (jnp.tanh(x) @ p["f"]["kernel"] + p["f"]["bias"])
        return (1.7 * x + jnp.tanh(x @ p["g"])) @ p["head"]

    found = jp.find_branches(fn, params, X)
    assert [(b.name, b.size) for b in found] == [("f", 72), ("g", 64)]


def test_a_branch_around_a_branch_is_found_with_its_part():
    params = models.arrays({"f": (8, 8), "g": (8, 8), "head": (8, 2)})

    def fn(p, x):
        z = jnp.tanh(x @ p["f"])
        return (x + (z + jnp.tanh(z @ p["g"]))) @ p["head"]

    found = jp.find_branches(fn, params, X)
    assert {(b.name, b.size, b.inside) for b in found} >= {("g", 64, "f")}
    assert max(b.size for b in found) == 128


def test_projection_shortcuts_keep_the_projection():
    found = jp.find_branches(models.resnet, models.arrays(models.RESNET), models.IMAGES)
    assert [(b.name, b.size) for b in found] == [("block_0", 288), ("block_1", 36 * 8 + 72 * 8)]


def test_weights_that_layers_share_are_freed_with_the_last_of_them():
    params = models.arrays({"shared": (8, 8), "head": (8, 2)})

    def fn(p, x):
        for _ in range(3):
            x = x + jnp.tanh(x @ p["shared"])
        return x @ p["head"]

    found = jp.find_branches(fn, params, X)
    assert found.keys() == ["shared", "shared#2", "shared#3"]
    assert [b.size for b in found] == [0, 0, 0] and all(b.flops == 2 * 2 * 64 for b in found)
    assert found.removed(found.keys()[:2]).size == 0
    assert found.removed(found.keys()).size == 64


def test_each_step_of_a_scan_over_stacked_layers_is_a_branch():
    found = jp.find_branches(models.scanned, models.stacked(), models.IDS)
    listed = jp.find_branches(models.language_model(models.pre_norm), models.listed(), models.IDS)
    steps = [b for b in found if b.kind == "step"]
    assert [b.name for b in steps] == ["layers[0]", "layers[1]", "layers[2]"]
    assert {(b.size, b.flops) for b in steps} == {(listed["layers/0"].size, listed["layers/0"].flops)}
    assert found["layers[2]"].added_to == "step 1"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_residuals_in_the_body_of_a_scan_are_branches_of_all_steps(call):
    def fn(params, ids):
        body = call(models.pre_norm)
        x, _ = jax.lax.scan(lambda x, p: (body(p, x), None), params["embedding"][ids], params["layers"])
        return models.norm(params["ln"], x) @ params["head"]

    found = jp.find_branches(fn, models.stacked(), models.IDS)
    listed = jp.find_branches(models.language_model(models.pre_norm), models.listed(), models.IDS)
    of_steps = {b.name: (b.kind, b.size, b.flops) for b in found if b.kind != "step"}
    assert of_steps == {
        f"layers/{part}": ("sum", 3 * listed[f"layers/0/{part}"].size, 3 * listed[f"layers/0/{part}"].flops)
        for part in ("attn", "mlp")
    }
    assert found["layers/attn"].added_to == "the carry of each step"
    assert found["layers/mlp"].added_to == "the sum after layers/attn, in each step"


def test_steps_that_are_time_and_scans_that_give_outputs_are_no_layers():
    params = models.arrays({"h": (8, 8), "layers": (3, 8, 8), "head": (8, 2)})

    def recurrent(p, x):
        def step(h, x):
            return jnp.tanh(h @ p["h"] + x), None

        return jax.lax.scan(step, x[0] * 0, x)[0] @ p["head"]

    def with_outputs(p, x):
        x, means = jax.lax.scan(lambda x, w: (x + x @ w, x.mean()), x, p["layers"])
        return x @ p["head"], means

    found = jp.find_branches(recurrent, params, jnp.ones((5, 2, 8)))
    assert len(found) == 0 and "no layers" in found.fixed[0].reason
    found = jp.find_branches(with_outputs, params, X)
    assert len(found) == 0 and "an output for each step" in str(found)


def test_sums_that_are_no_residuals_are_refused_with_the_reason():
    params = models.arrays({"f": (8, 8), "g": (8, 8), "head": (8, 2)})
    found = jp.find_branches(lambda p, x: jnp.tanh(x @ p["f"] + x[::-1] @ p["g"]) @ p["head"], params, X)
    assert len(found) == 0 and "no operand of this sum" in found.fixed[0].reason
    found = jp.find_branches(
        lambda p, x: x + jnp.tanh(x @ p["f"]) @ p["g"], {"f": params["f"], "g": params["g"]}, X
    )
    assert len(found) == 0 and found.fixed[0].reason == "no parameters would be left"


def test_gates_are_no_skips():
    params = models.arrays({"f": (8, 8), "t": (8, 8), "head": (8, 2)})

    def highway(p, x):
        t = jax.nn.sigmoid(x @ p["t"])
        return (jnp.tanh(x @ p["f"]) * t + x * (1 - t)) @ p["head"]

    assert names(highway, params, X) == []


def test_a_name_that_is_none_is_told():
    found = jp.find_branches(models.scanned, models.stacked(), models.IDS)
    with pytest.raises(KeyError, match=r"no branch 'layers/9'.*layers\[0\]"):
        found["layers/9"]
    with pytest.raises(ValueError, match="`exclude` pattern 'nothing' matched no branch"):
        found.named("nothing", "exclude")


def test_the_parts_of_a_scaled_sum_are_branches():
    params = models.arrays({"f": (8, 8), "g": (8, 8), "h": (8, 8), "gain": (8,), "head": (8, 2)})

    def fn(p, x, without=()):
        f, g = (0 if n in without else jnp.tanh(x @ p[n]) for n in "fg")
        x = x + 0.5 * (f + g).astype(jnp.float32) * p["gain"]
        return (x - (-jnp.tanh(x @ p["h"]))) @ p["head"]

    found = jp.find_branches(fn, params, X)
    assert {"f", "g", "h"} <= set(found.keys())
    for name in "fg":
        plan = jp.plan_layers(found, params, number=1, score={b.name: b.name != name for b in found})
        expected = fn(params, X, (name,))
        assert jnp.abs(plan.compact(fn)(plan.shrink(params), X) - expected).max() < 1e-6


def test_layers_that_give_two_streams_different_values_are_branches():
    layer = dict.fromkeys(("filter", "gate", "residual", "skip"), (8, 8))
    params = models.arrays({"layers": [layer] * 3, "head": (8, 2)})

    def wavenet(params, x, without=()):
        skips = 0
        for i, p in enumerate(params["layers"]):
            if i not in without:
                z = jnp.tanh(x @ p["filter"]) * jax.nn.sigmoid(x @ p["gate"])
                x, skips = x + z @ p["residual"], skips + z @ p["skip"]
        return jax.nn.relu(skips) @ params["head"]

    found = jp.find_branches(wavenet, params, X)
    # The last layer gives the stream nothing that is used.
    whole = [b for b in found if b.size == 4 * 64]
    assert [b.name for b in whole] == ["layers/0", "layers/1"]
    for i, branch in enumerate(whole):
        names = [branch.name]
        score = {b.name: float(b.name not in names) for b in found}
        plan = jp.plan_layers(found, params, number=1, score=score, level="blocks")
        assert plan.removed == (branch.name,)
        expected = wavenet(params, X, (i,))
        assert jnp.abs(plan.compact(wavenet)(plan.shrink(params), X) - expected).max() < 1e-6


def mlp(params, x, without=()):
    x = jax.nn.relu(x @ params["first"])
    for i, p in enumerate(params["hidden"]):
        if i not in without:
            x = jax.jit(jax.nn.relu)(x @ p["kernel"] + p["bias"])
    return x @ params["head"]


@pytest.mark.parametrize("gone", [(0,), (1,), (0, 1), (1, 2)])
def test_plain_layers_are_left_out_where_they_are_asked_for(gone):
    layer = {"kernel": (8, 8), "bias": (8,)}
    params = models.arrays({"first": (8, 8), "hidden": [layer] * 3, "head": (8, 2)})
    assert not names(mlp, params, X)
    found = jp.find_branches(mlp, params, X, plain=True)
    assert [(b.name, b.kind, b.size, b.flops) for b in found] == [
        (f"hidden/{i}", "plain", 72, 2 * 2 * 64) for i in range(3)
    ]
    score = {b.name: float(int(b.name[-1]) not in gone) for b in found}
    plan = jp.plan_layers(found, params, number=len(gone), score=score)
    small, expected = plan.shrink(params), mlp(params, X, gone)
    assert jnp.abs(plan.compact(mlp)(small, X) - expected).max() < 1e-6
    assert plan.verify(mlp, params, X).ok
    loss_fn = lambda p, x: mlp(p, x).mean()  # noqa: E731
    rise = jp.surgery.loss_increase(found, loss_fn, params, [X])
    for i in range(3):
        assert abs(rise[f"hidden/{i}"] - (mlp(params, X, (i,)).mean() - loss_fn(params, X))) < 1e-6
    x = jnp.asarray(np.random.default_rng(3).normal(size=(9, 8)) + 1, jnp.float32)
    influence = jp.surgery.block_influence(found, params, [x])
    before = jax.nn.relu(x @ params["first"])
    for i, p in enumerate(params["hidden"]):
        after = jax.nn.relu(before @ p["kernel"] + p["bias"])
        norms = jnp.maximum(jnp.linalg.norm(before, axis=1) * jnp.linalg.norm(after, axis=1), 1e-30)
        assert abs(influence[f"hidden/{i}"] - (1 - ((before * after).sum(1) / norms).mean())) < 1e-6
        before = after


def test_parts_of_residual_branches_are_no_plain_layers():
    fn, params = models.language_model(models.pre_norm), models.listed(2)
    kinds = {b.kind for b in jp.find_branches(fn, params, models.IDS, plain=True)}
    assert kinds == {"sum", "block"}
