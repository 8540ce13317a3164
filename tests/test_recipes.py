import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.experiments.compare.combinations import MAKE

STEPS = 24
# Each program runs once, so compiling is all that it costs.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SIZES = (8, 24, 4)
COUNT = sum(a * b for a, b in itertools.pairwise(SIZES))


def fresh(key):
    return {
        f"layer_{i}": {"kernel": jax.random.normal(jax.random.fold_in(key, i), (a, b)) / a**0.5, "bias": jnp.zeros(b)}
        for i, (a, b) in enumerate(itertools.pairwise(SIZES))
    }  # fmt: skip


def fn(params, x):
    for i in range(len(SIZES) - 1):
        x = x @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
        x = jax.nn.relu(x) if i < len(SIZES) - 2 else x
    return x


def loss_fn(params, batch):
    return jnp.mean((fn(params, batch) - jnp.sin(3 * batch[:, :4])) ** 2)


def batch_fn(key, step):
    return jax.random.normal(jax.random.fold_in(key, step), (32, SIZES[0]))


def where_of(recipe, params):
    last = (f"layer_{len(SIZES) - 2}/kernel",)
    return None if isinstance(recipe.structure, jp.Unstructured) else jp.prunable(params, exclude=last)


def trained(recipe, key, dtype=jnp.float32):
    """Parameters and masks after a user's own loop."""
    params = jax.tree.map(lambda w: w.astype(dtype), fresh(key))
    tx = recipe.transform(
        optax.adam(1e-2),
        params,
        steps=STEPS,
        key=key,
        loss_fn=loss_fn,
        batches=[batch_fn(key, STEPS)],
        fn=fn,
        inputs=(jnp.zeros((1, SIZES[0]), dtype),),
        where=where_of(recipe, params),
    )

    def step(t, carry):
        params, opt_state = carry
        grads = jax.grad(loss_fn)(params, batch_fn(key, t).astype(dtype))
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = jax.lax.fori_loop(0, STEPS, step, (params, tx.init(params)))
    return params, jp.get_masks(opt_state)


def pruned_units(recipe, params, masks):
    """(pruned, all) of the recipe's units, counted on the masks."""
    pruned = total = 0
    for w, mask in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
        if jnp.ndim(mask):
            full = np.broadcast_to(mask, w.shape)
            units = full if isinstance(recipe.structure, jp.Unstructured) else full.any(axis=0)
            pruned, total = pruned + int((~units).sum()), total + units.size
    return pruned, total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sparsity"),
    [*((name, 0.75) for name in MAKE if name != "imp"), ("set", 0.0)],
)
def test_each_recipe_ends_at_its_exact_sparsity_with_exact_zeros(name, sparsity):
    recipe = MAKE[name](sparsity)
    params, masks = jit(lambda key: trained(recipe, key))(jax.random.key(0))
    pruned, total = pruned_units(recipe, params, masks)
    assert pruned == round(sparsity * total)
    for w, mask in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
        assert np.all(np.isfinite(w)) and not np.any(np.where(mask, 0, w))


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.9])
def test_imp_ends_at_its_exact_sparsity_in_the_steps_it_was_given(sparsity):
    def train_step(state, batch):
        grads = jax.grad(loss_fn)(state.params, batch)
        return state.apply_gradients(grads=grads), {"step": state.step}

    recipe = jp.recipes.imp(sparsity, rounds=3)
    imp = recipe.experiment(train_step, batch_fn, steps=STEPS)
    state = TrainState.create(apply_fn=None, params=fresh(jax.random.key(0)), tx=jp.masked(optax.adam(1e-2)))
    _, history = jit(imp.run)(jax.random.key(1), state)
    assert int(history.kept[-1]) == COUNT - round(sparsity * COUNT)
    assert imp.steps * (imp.rounds + 1) == STEPS
    assert history.metrics["step"].tolist() == [STEPS // 4 - 1] * 4


@pytest.mark.parametrize("name", MAKE)
def test_printing_a_recipe_tells_the_four_choices(name):
    lines = str(MAKE[name](0.9)).splitlines()
    assert lines[0].endswith(", sparsity 0.9")
    assert [line.split()[0] for line in lines[1:]] == ["structure", "scoring", "scheduling", "initialization"]
    assert all(len(line.split()) > 1 for line in lines[1:])
    assert repr(MAKE[name](0.9)) == "\n".join(lines)


def test_no_two_recipes_are_the_same_four_choices():
    told = {"\n".join(str(make(0.9)).splitlines()[1:]) for make in MAKE.values()}
    assert len(told) == len(MAKE)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("sparsity", [1.0, 90, -0.1])
def test_a_sparsity_that_is_no_fraction_is_an_error_at_once(name, sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\)"):
        MAKE[name](sparsity)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("snip", "loss_fn"), ("grasp", "loss_fn"), ("synflow", "fn"), ("static", "key"), ("set", "key")],
)
def test_what_a_recipe_needs_and_did_not_get_is_named(name, missing):
    recipe = MAKE[name](0.9)
    with pytest.raises(ValueError, match=rf"`{missing}` must be given to transform\(\): .* needs it"):
        recipe.transform(optax.sgd(0.1), fresh(jax.random.key(0)), steps=3)


def test_steps_must_be_a_whole_number():
    for steps in (0, 2.5, True):
        with pytest.raises(ValueError, match="`steps` must be a whole number"):
            jp.recipes.gmp(0.9).transform(optax.sgd(0.1), fresh(jax.random.key(0)), steps=steps)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("one-shot", {"at": 1.0}), ("group-lasso", {"at": 1.0}), ("gmp", {"until": 1.0}), ("rigl", {"until": -0.5}),
        ("ac-dc", {"begin": 1.5}), ("gmp", {"updates": 0}), ("set", {"updates": 2.5}), ("synflow", {"rounds": 0}),
        ("ac-dc", {"phases": 0}), ("imp", {"rounds": True}), ("ac-dc", {"until": 0.05}),
    ],
)  # fmt: skip
def test_what_would_never_happen_is_an_error_at_once(name, option):
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` must"):
        MAKE[name](0.9, **option)


def test_recipes_are_frozen():
    for recipe in (jp.recipes.gmp(0.9), jp.recipes.imp(0.9)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            recipe.sparsity = 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gmp"])
def test_under_vmap_each_seed_gets_what_it_gets_alone(name):
    recipe = MAKE[name](0.75)
    run = jit(lambda key: trained(recipe, key))
    both = jit(jax.vmap(lambda key: trained(recipe, key)))(jax.random.split(jax.random.key(0)))
    for i, key in enumerate(jax.random.split(jax.random.key(0))):
        alone = run(key)
        pruned = pruned_units(recipe, alone[0], jax.tree.map(lambda m, i=i: m[i], both[1]))
        assert pruned == (round(0.75 * COUNT), COUNT)
        for one, of_all in zip(jax.tree.leaves(alone[0]), jax.tree.leaves(both[0]), strict=True):
            np.testing.assert_allclose(one, of_all[i], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["set"])
def test_in_bfloat16_the_count_is_exact_too(name):
    recipe = MAKE[name](0.75)
    params, masks = jit(lambda key: trained(recipe, key, jnp.bfloat16))(jax.random.key(0))
    assert pruned_units(recipe, params, masks) == (round(0.75 * COUNT), COUNT)
    assert {w.dtype for w in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def kept_by_layer(recipe, params):
    """Weights left in each layer after one step that starts from `params`."""

    def step(params):
        tx = recipe.transform(optax.sgd(0.0), params, steps=1, fn=fn, inputs=(jnp.zeros((1, SIZES[0])),))
        _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        return jp.get_masks(state)

    return [int(m.sum()) for m in jax.tree.leaves(jit(step)(params)) if m.ndim]


def of_unequal_scale():
    """A network whose last layer has small weights."""
    params = fresh(jax.random.key(0))
    params["layer_1"]["kernel"] *= 1e-3
    return params


@pytest.mark.slow
def test_magnitude_loses_the_layer_of_small_weights_and_synflow_and_lamp_do_not():
    params, kept = of_unequal_scale(), COUNT - round(0.95 * COUNT)
    assert kept_by_layer(jp.recipes.one_shot(0.95, at=0.0), params) == [kept, 0]
    for whole in (jp.recipes.synflow(0.95), jp.recipes.lamp(0.95, at=0.0)):
        layers = kept_by_layer(whole, params)
        assert min(layers) > 0 and sum(layers) == kept


@pytest.mark.slow
def test_minimum_keep_leaves_each_layer_half_of_an_equal_part():
    kept, least = COUNT - round(0.95 * COUNT), int(0.5 * 0.05 * COUNT / 2)
    layers = kept_by_layer(jp.recipes.minimum_keep(0.95, at=0.0), of_unequal_scale())
    assert layers == [kept - least, least]
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\], got 2"):
        jp.recipes.minimum_keep(0.9, share=2)


@pytest.mark.slow
def test_gradual_with_a_minimum_prunes_as_many_and_leaves_each_layer_its_largest():
    params = {"a": jnp.array([[4.0, 3.0]]), "b": jnp.array([[2.0, 1.0]])}
    kept = {}
    for minimum in (0, 1, 0.5):
        tx = jp.gradual(optax.sgd(0.0), jp.schedules.constant(0.5), minimum=minimum)
        _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        kept[minimum] = jax.tree.map(lambda m: m[0].astype(int).tolist(), jp.get_masks(state))
    assert kept[0] == {"a": [1, 1], "b": [0, 0]}
    assert kept[1] == kept[0.5] == {"a": [1, 0], "b": [1, 0]}
    with pytest.raises(ValueError, match="`minimum` keeps 4 of 4 units in all, but `sparsity` prunes 2"):
        jp.gradual(optax.sgd(0.0), jp.schedules.constant(0.5), minimum=2).init(params)


def test_a_pattern_takes_its_own_sparsity_only():
    for make in (jp.recipes.one_shot, jp.recipes.gmp, jp.recipes.imp):
        assert make(0.5, structure=jp.NM(2, 4)).sparsity == 0.5
        for sparsity in (0.25, 0.9):
            with pytest.raises(ValueError, match=r"`sparsity` must be 0.5 for NM\(2, 4\)"):
                make(sparsity, structure=jp.NM(2, 4))


ALLOCATED = {
    "gmp": {}, "one-shot": {"at": 0.0}, "ac-dc": {"begin": 0.0}, "rigl": {}, "static": {}, "magnitude-at-init": {},
    "snip": {}, "synflow": {"rounds": 3},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ALLOCATED)
def test_an_allocation_gives_each_layer_its_own_share(name):
    params = fresh(jax.random.key(0))
    shares = jax.tree.map(lambda w: 0.0, params)
    shares["layer_0"]["kernel"], shares["layer_1"]["kernel"] = 0.5, 0.875  # 96 and 84 of 192 and 96
    recipe = MAKE[name](0.625, allocation=shares, **ALLOCATED[name])
    assert "allocation=given" in str(recipe.scoring)
    tx = recipe.transform(
        optax.sgd(0.0), params, steps=2, key=jax.random.key(1), loss_fn=loss_fn,
        batches=[batch_fn(jax.random.key(2), 0)], fn=fn, inputs=(jnp.zeros((1, 8)),),
    )  # fmt: skip

    def run(params):
        state = tx.init(params)
        for _ in range(2):
            _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return jp.get_masks(state)

    assert [int((~m).sum()) for m in jax.tree.leaves(jit(run)(params)) if m.ndim] == [96, 84]


@pytest.mark.slow
def test_an_allocation_of_imp_needs_the_parameters_and_is_reached_in_rounds():
    params = fresh(jax.random.key(0))
    recipe = jp.recipes.imp(0.75, rounds=2, allocation=jp.allocate.erk)
    assert str(recipe.scoring) == "Scoring(magnitude, allocation=erk)"
    with pytest.raises(ValueError, match="`params` must be given"):
        recipe.experiment(lambda state, batch: (state, ()), batch_fn, steps=3)
    imp = recipe.experiment(lambda state, batch: (state, ()), batch_fn, steps=3, params=params)
    carry = imp.init(jax.random.key(0), TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1)))
    for _ in range(3):
        carry, _ = imp.step(carry)
    want = jp.allocate.erk(params, 0.75)
    for layer in params:
        assert int((~carry.masks[layer]["kernel"]).sum()) == round(
            want[layer]["kernel"] * params[layer]["kernel"].size
        )


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        (
            "owl",
            "`allocation` must be one of 'erk', 'uniform', a function or a tree of sparsities, got 'owl'",
        ),
        (0.5, "`allocation` must be a name, a function or a tree"),
        (
            lambda params, sparsity, where: jax.tree.map(lambda w: 0.5, params),
            "sparsity of 0.9 in total, but it prunes 0.5 of",
        ),
        (lambda params, sparsity, where: {"w": 0.9}, "`allocation` must have the tree structure"),
        (
            lambda params, sparsity, where: jax.tree.map(lambda w: 90, params),
            r"`allocation` must be in \[0, 1\)",
        ),
    ],
)
def test_an_allocation_that_does_not_fit_is_named(allocation, message):
    def make():
        recipe = jp.recipes.gmp(0.9, allocation=allocation)
        return recipe.transform(optax.sgd(0.1), fresh(jax.random.key(0)), steps=3)

    with pytest.raises((ValueError, TypeError), match=message):
        make()
