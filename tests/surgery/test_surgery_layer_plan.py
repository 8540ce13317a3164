"""Plans of layers: what is left equals the model written without them, and trees, states and files follow."""

import branch_models as models
import jax
import jax.numpy as jnp
import library_models
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.surgery import LayerPlan

LAYERS = {"pre-norm": models.pre_norm, "post-norm": models.post_norm, "parallel": models.parallel}
CALLS = {"plain": lambda f: f, "jit in remat": lambda f: jax.checkpoint(jax.jit(f))}


def plan_without(fn, params, inputs, names, level="parts"):
    """The plan that leaves out exactly these branches."""
    branches = jp.find_branches(fn, params, *inputs)
    score = {branch.name: float(branch.name not in names) for branch in branches}
    return jp.plan_layers(branches, params, number=len(names), score=score, level=level)


def error(a, b):
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("without", [[(1, "attn")], [(0, "mlp"), (2, "attn")], [(1, "attn"), (1, "mlp")]])
def test_the_small_function_is_the_model_written_without_the_branches(layer, call, without):
    fn, params = models.language_model(layer, call), models.listed()
    plan = plan_without(fn, params, (models.IDS,), [f"layers/{i}/{name}" for i, name in without])
    small = plan.shrink(params)
    assert error(plan.compact(fn)(small, models.IDS), fn(params, models.IDS, without)) < 1e-6
    other = models.IDS[:1, :3]  # another shape is analysed anew
    assert error(jax.jit(plan.compact(fn))(small, other), fn(params, other, without)) < 1e-6
    assert plan.verify(fn, params, models.IDS).error < 1e-6
    assert {
        p: x.shape for p, x in zip(*jp.params.flatten_with_paths(small)[:2], strict=True)
    } == plan.small_shapes


@pytest.mark.parametrize("without", ["block_0", "block_1"])
def test_residual_blocks_of_convolutions(without):
    params = models.arrays(models.RESNET)
    plan = plan_without(models.resnet, params, (models.IMAGES,), [without])
    small = plan.shrink(params)
    expected = models.resnet(params, models.IMAGES, (without,))
    assert error(plan.compact(models.resnet)(small, models.IMAGES), expected) < 1e-6
    assert ("block_0" in small, "conv_0" in small["block_1"]) == ((False, True), (True, False))[
        int(without[-1])
    ]


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("gone", [[0], [1, 3], [0, 1, 2]])
@pytest.mark.parametrize("unroll", [1, 2])
def test_steps_of_a_scan_lose_their_slices(gone, unroll):
    params = models.stacked(4)

    def fn(params, ids, layers=None):
        x = params["embedding"][ids]
        layers = (params["layers"], jnp.arange(4.0) / 4) if layers is None else layers
        step = lambda x, p: (models.pre_norm(p[0], x) + p[1], None)  # noqa: E731
        x, _ = jax.lax.scan(step, x, layers, unroll=unroll)
        return models.norm(params["ln"], x) @ params["head"]

    plan = plan_without(fn, params, (models.IDS,), [f"layers[{i}]" for i in gone])
    small, kept = plan.shrink(params), np.setdiff1d(range(4), gone)
    assert small["layers"]["attn"]["q"].shape == (len(kept), 8, 8)
    layers = jax.tree.map(lambda x: x[kept], params["layers"]), jnp.arange(4.0)[kept] / 4
    assert error(plan.compact(fn)(small, models.IDS), fn(params, models.IDS, layers)) < 1e-6
    assert plan.verify(fn, params, models.IDS).ok


@pytest.mark.parametrize(
    "gone", [("layers/attn",), ("layers/mlp",), ("layers/mlp", "layers[1]", "layers[3]")]
)
@pytest.mark.parametrize("call", ["plain", "remat"])
@pytest.mark.parametrize("reverse", [False, True])
def test_branches_in_the_body_of_a_scan_are_left_out_in_all_steps(gone, call, reverse, tmp_path):
    params = models.stacked(4)
    layer = jax.checkpoint(models.pre_norm, static_argnums=2) if call == "remat" else models.pre_norm

    def fn(params, ids, layers=None, without=()):
        x = params["embedding"][ids]
        layers = (params["layers"], jnp.arange(4.0) / 4) if layers is None else layers
        step = lambda x, p: (layer(p[0], x, without) + p[1], None)  # noqa: E731
        x, _ = jax.lax.scan(step, x, layers, reverse=reverse)
        return models.norm(params["ln"], x) @ params["head"]

    plan = plan_without(fn, params, (models.IDS,), gone)
    kept = np.array([i for i in range(4) if f"layers[{i}]" not in gone])
    without = tuple(name.split("/")[1] for name in gone if "/" in name)
    layers = jax.tree.map(lambda x: x[kept], params["layers"]), jnp.arange(4.0)[kept] / 4
    expected = fn(params, models.IDS, layers, without)
    small = plan.shrink(params)
    assert set(small["layers"]).isdisjoint(without) and plan.verify(fn, params, models.IDS).ok
    assert error(plan.compact(fn)(small, models.IDS), expected) < 1e-6
    plan.save(tmp_path / "plan.json")
    again = jp.surgery.LayerPlan.load(tmp_path / "plan.json", params)
    assert error(again.compact(fn)(again.shrink(params), models.IDS), expected) < 1e-6
    masked = jp.apply_masks(params, plan.masks(params))
    assert all(not masked["layers"][part]["down" if part == "mlp" else "o"].any() for part in without)
    branches = jp.find_branches(fn, params, models.IDS)
    left = sum(x.size for x in jax.tree.leaves(small))
    assert branches.removed(gone).size == branches.size - left


def test_gradients_are_those_of_the_model_without_the_branch():
    fn, params = models.language_model(models.pre_norm, jax.checkpoint), models.listed()
    plan = plan_without(fn, params, (models.IDS,), ["layers/1/mlp"])
    got = jax.grad(lambda p: (plan.compact(fn)(p, models.IDS) ** 2).mean())(plan.shrink(params))
    want = jax.grad(lambda p: (fn(p, models.IDS, [(1, "mlp")]) ** 2).mean())(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), got, plan.shrink(want))


def test_emptied_dicts_go_and_lists_keep_their_places():
    fn, params = models.language_model(models.pre_norm), models.listed()
    plan = plan_without(fn, params, (models.IDS,), ["layers/1"], level="blocks")
    small = plan.shrink(params)
    assert small["layers"][1] is None and set(small["layers"][2]) == {"attn", "mlp", "ln_1", "ln_2"}
    assert plan.removed == ("layers/1",) and "layers/1" in str(plan)
    masks = plan.masks(params)
    assert not jax.tree.leaves(masks["layers"][1])[0].any() and masks["head"] is True


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9), optax.adafactor(0.1)])
@pytest.mark.parametrize("kind", ["listed", "stacked"])
def test_an_optimizer_goes_on_with_what_is_left(optimizer, kind):
    params = getattr(models, kind)()
    fn = models.scanned if kind == "stacked" else models.language_model(models.pre_norm)
    name = "layers[1]" if kind == "stacked" else "layers/1/mlp"
    plan = plan_without(fn, params, (models.IDS,), [name])
    _, state = optimizer.update(params, optimizer.init(params), params)
    small = plan.shrink(params)
    got = plan.shrink_opt_state(state)
    _, want = optimizer.update(small, optimizer.init(small), small)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)
    optimizer.update(small, got, small)


def test_a_plan_is_saved_and_read(tmp_path):
    params = models.stacked()
    plan = plan_without(models.scanned, params, (models.IDS,), ["layers[2]"])
    plan.save(tmp_path / "plan.json")
    read = LayerPlan.load(tmp_path / "plan.json", jax.eval_shape(lambda: params))
    assert (read.removed, read.small_shapes) == (plan.removed, plan.small_shapes)
    small = plan.shrink(params)
    np.testing.assert_array_equal(
        read.compact(models.scanned)(read.shrink(params), models.IDS),
        plan.compact(models.scanned)(small, models.IDS),
    )
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other.json' is not a 'jaxprune layer plan 1' file"):
        LayerPlan.load(tmp_path / "other.json", params)
    with pytest.raises(ValueError, match="not what the plan was made for"):
        LayerPlan.load(tmp_path / "plan.json", {"head": params["head"]})


def test_budgets_count_what_goes_together():
    params = models.arrays({"shared": (8, 8), "other": (8, 8), "head": (8, 2)})

    def fn(p, x):
        for name in ("shared", "other", "shared"):
            x = x + jnp.tanh(x @ p[name])
        return x @ p["head"]

    branches = jp.find_branches(fn, params, jnp.ones((2, 8)))
    score = {"shared": 0.0, "shared#2": 1.0, "other": 2.0}
    assert jp.plan_layers(branches, params, 0.4, score).removed == ("shared", "shared#2")
    assert jp.plan_layers(branches, params, 0.4, score, exclude="shared#2").removed == ("shared", "other")
    assert jp.plan_layers(branches, params, 0.2, score, budget="flops").removed == ("shared",)
    assert jp.plan_layers(branches, params, 0.34, score, budget="branches").removed == ("shared",)


def test_what_is_excluded_is_kept_with_the_block_around_it_and_with_its_parts():
    branches = jp.find_branches(
        models.language_model(models.pre_norm), params := models.listed(2), models.IDS
    )
    plan = jp.plan_layers(branches, params, number=2, exclude="layers/0")
    assert plan.removed == ("layers/1/attn", "layers/1/mlp")
    plan = jp.plan_layers(branches, params, number=1, exclude=["layers/0/mlp"], level="blocks")
    assert plan.removed == ("layers/1",)
    with pytest.raises(ValueError, match="there is no branch to leave out"):
        jp.plan_layers(
            branches, params, number=1, exclude=["layers/0/mlp", branches["layers/1/attn"]], level="blocks"
        )


def test_mistakes_are_told():
    fn, params = models.language_model(models.pre_norm), models.listed()
    branches = jp.find_branches(fn, params, models.IDS)
    plan = jp.plan_layers(branches, params, number=1)
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\), got 25"):
        jp.plan_layers(branches, params, 25)
    with pytest.raises(ValueError, match="`sparsity` or `number`"):
        jp.plan_layers(branches, params, 0.5, number=1)
    with pytest.raises(ValueError, match="would take all 6 branches"):
        jp.plan_layers(branches, params, number=6)
    with pytest.raises(ValueError, match="would take all 6 branches"):
        jp.plan_layers(branches, params, 0.99)
    with pytest.raises(ValueError, match="got nothing for 'layers/0/attn'"):
        jp.plan_layers(branches, params, score={})
    with pytest.raises(ValueError, match="`budget` must be one of"):
        jp.plan_layers(branches, params, budget="units")
    with pytest.raises(ValueError, match="must be what `find_branches` was given"):
        jp.plan_layers(branches, {**params, "head": params["head"][:, :1]})
    with pytest.raises(ValueError, match="which the plan removes or does not know"):
        plan.compact(fn)(params, models.IDS)
    with pytest.raises(ValueError, match="`fn` has no branch"):
        plan.compact(lambda p, ids: p["embedding"][ids])(plan.shrink(params), models.IDS)


def test_layers_and_widths_follow_each_other_in_either_order():
    fn, params = models.language_model(models.pre_norm), models.listed()

    def narrowed(fn, params):
        groups = jp.find_groups(fn, params, models.IDS)
        (ffn,) = (g for g in groups if g.name.startswith("layers/0/mlp"))
        return jp.surgery.plan_units(groups, {ffn.name: np.arange(16) % 2 == 0})

    layers = plan_without(fn, params, (models.IDS,), ["layers/1/mlp"])
    widths = narrowed(layers.compact(fn), layers.shrink(params))
    one = layers.then(widths)
    first = narrowed(fn, params)
    other = first.then(plan_without(first.compact(fn), first.shrink(params), (models.IDS,), ["layers/1/mlp"]))
    want = fn(jp.apply_masks(params, first.masks(params)), models.IDS, [(1, "mlp")])
    _, state = optax.adam(0.1).update(params, optax.adam(0.1).init(params))
    for plan in (one, other):
        small = plan.shrink(params)
        assert error(plan.compact(fn)(small, models.IDS), want) < 1e-5
        assert plan.verify(fn, params, models.IDS).ok
        assert jax.tree.structure(plan.shrink_opt_state(state)[0].mu) == jax.tree.structure(small)
        kept = jax.tree.map(lambda m, x: int(jnp.broadcast_to(m, x.shape).sum()), plan.masks(params), params)
        assert sum(jax.tree.leaves(kept)) == sum(x.size for x in jax.tree.leaves(small))
    assert one.small_shapes == other.small_shapes
    with pytest.raises(ValueError, match="its shapes differ"):
        layers.then(first)


def test_parts_and_the_block_around_them_give_one_function():
    params = models.arrays({"f": (8, 8), "g": (8, 8), "h": (8, 8), "head": (8, 2)})

    def fn(p, x, without=()):
        x = x if "fg" in without else x + (jnp.tanh(x @ p["f"]) + jnp.tanh(x @ p["g"]))
        return (x + jnp.tanh(x @ p["h"])) @ p["head"]

    x = jnp.linspace(-1, 1, 16).reshape(2, 8)
    branches = jp.find_branches(fn, params, x)
    parts = [b for b in branches if {"f", "g"} >= set(b.params) and b.size == 64]
    score = {b.name: float(b not in parts) for b in branches}
    plan = jp.plan_layers(branches, params, number=2, score=score)
    assert set(plan.removed) == {b.name for b in parts} and len(parts) == 2
    assert error(plan.compact(fn)(plan.shrink(params), x), fn(params, x, ("fg",))) < 1e-6
    (around,) = (b for b in branches if b.size == 128)
    score = {b.name: float(b is not around) for b in branches}
    plan = jp.plan_layers(branches, params, number=1, score=score, level="blocks")
    assert plan.removed == (around.name,)
    assert error(plan.compact(fn)(plan.shrink(params), x), fn(params, x, ("fg",))) < 1e-6


def test_nnx_states_keep_the_place_of_what_is_removed():
    fn, params, *inputs = library_models.MODELS["NNX MLP"]()
    plan = plan_without(fn, params, inputs, ["layers/0"])
    small = plan.shrink(params)
    assert type(small) is type(params) and 0 in small["layers"]
    assert {
        p: x.shape for p, x in zip(*jp.params.flatten_with_paths(small)[:2], strict=True)
    } == plan.small_shapes
    assert plan.verify(fn, params, *inputs).ok
    assert plan.compact(fn)(small, *inputs).shape == fn(params, *inputs).shape


def test_a_branch_that_two_sums_take_leaves_both():
    params = models.arrays({"f": (8, 8), "g": (8, 8), "head": (8, 2)})

    def fn(p, x, without=()):
        total = 0 * x
        for name in "fg":
            z = jnp.tanh(x @ p[name]) * (name not in without)
            x, total = x + z, total + z
        return (x + 2 * total) @ p["head"]

    x = jnp.linspace(-1, 1, 16).reshape(2, 8)
    plan = plan_without(fn, params, (x,), ["f"])
    small = plan.shrink(params)
    assert sorted(small) == ["g", "head"]
    assert error(plan.compact(fn)(small, x), fn(params, x, "f")) < 1e-6


def test_small_depth_names_the_layers_that_are_left():
    fn, params = models.language_model(models.pre_norm), models.listed()
    plan = plan_without(fn, params, (models.IDS,), ["layers/1"], level="blocks")
    assert plan.small_depth == {"layers/*": (0, 2)}
    alike = {**params, "layers": [params["layers"][i] for i in plan.small_depth["layers/*"]]}
    assert error(plan.compact(fn)(plan.shrink(params), models.IDS), fn(alike, models.IDS)) < 1e-6
    part = plan_without(fn, params, (models.IDS,), ["layers/1/mlp"])
    assert part.small_depth == {}
    stacked = plan_without(models.scanned, models.stacked(), (models.IDS,), ["layers[0]"])
    assert stacked.small_depth == {"layers": (1, 2)}
