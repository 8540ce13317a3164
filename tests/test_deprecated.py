"""Old spellings of public names work, and warn."""

import chex
import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from jaxprune.deprecated import renamed_names
from jaxprune.experiments.compare.combinations import MAKE
from jaxprune.experiments.compare.settings import CompareSettings


def test_plan_widths_are_its_small_shapes():
    params = {"up": jnp.ones((1, 4)), "down": jnp.ones((4, 1))}
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
    plan = jp.plan_removal(groups, params, 0.5)
    assert plan.small_shapes == {"up": (1, 2), "down": (2, 1)}
    with pytest.warns(
        DeprecationWarning, match=r"`Plan.widths` is deprecated: it is `Plan.small_shapes` now"
    ):
        assert plan.widths == plan.small_shapes


def test_the_slimming_recipe_is_group_lasso():
    with pytest.warns(
        DeprecationWarning, match=r"`jaxprune.recipes.slimming` .* `jaxprune.recipes.group_lasso`"
    ):
        assert jp.recipes.slimming is jp.recipes.group_lasso
    assert "slimming" not in jp.recipes.__all__
    with pytest.raises(AttributeError, match=r"module 'jaxprune.recipes' has no attribute 'slimmed'"):
        jp.recipes.slimmed  # noqa: B018


def test_the_command_line_takes_the_recipe_by_its_old_name():
    with pytest.warns(
        DeprecationWarning, match="The recipe 'slimming' is deprecated: it is 'group-lasso' now"
    ):
        settings = CompareSettings(recipes=("imp", "slimming"))
    assert settings.recipes == ("imp", "group-lasso") and set(settings.recipes) <= set(MAKE)


def test_random_masks_take_their_key_by_keyword():
    params, key = {"w": jnp.ones((4, 5)), "b": jnp.ones(5)}, jax.random.key(0)
    masks = jp.sparse_training.random_masks(params, 0.75, key=key)
    for first in (key, jax.random.PRNGKey(0)):
        with pytest.warns(DeprecationWarning, match=r"`random_masks\(key, \.\.\.\)` is deprecated"):
            old = jp.sparse_training.random_masks(first, params, sparsity=0.75)
        chex.assert_trees_all_equal(old, masks)
    with pytest.raises(TypeError, match="key"):
        jp.sparse_training.random_masks(params, 0.75)


def test_shuffled_masks_take_their_key_by_keyword():
    masks, key = {"w": jnp.arange(12).reshape(3, 4) < 5}, jax.random.key(0)
    with pytest.warns(DeprecationWarning, match=r"`shuffle_masks\(key, \.\.\.\)` is deprecated"):
        old = jp.shuffle_masks(key, masks)
    chex.assert_trees_all_equal(old, jp.shuffle_masks(masks, key=key))


def test_unit_scores_are_normalized_by_nothing_with_none():
    params = {"up": jnp.arange(4.0)[None], "down": jnp.ones((4, 1))}
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
    with pytest.warns(
        DeprecationWarning, match=r"`normalize='none'` is deprecated: it is `normalize=None` now"
    ):
        old = jp.plan_removal(groups, params, 0.5, "global", normalize="none")
    assert old.small_shapes == jp.plan_removal(groups, params, 0.5, "global", normalize=None).small_shapes


def test_taylor_scores_take_gradients_by_keyword():
    params = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[3.0], [0.5]])}
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
    scores = jp.surgery.taylor_scores(groups, params=params, gradients=params)
    for old in ((params, params), (params,)):
        with pytest.warns(
            DeprecationWarning, match=r"`taylor_scores\(groups, params, gradients\)` is deprecated"
        ):
            found = jp.surgery.taylor_scores(groups, *old, **({} if len(old) == 2 else {"gradients": params}))
        assert found == scores


def test_the_warning_names_the_line_that_used_the_old_name():
    find = renamed_names("some.module", {"old": ("new", 3)})
    with pytest.warns(DeprecationWarning, match=r"`some.module.old` .* `some.module.new`") as caught:
        assert find("old") == 3
    assert caught[0].filename == __file__
