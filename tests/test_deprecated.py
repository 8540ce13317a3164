"""Old spellings of public names work, and warn."""

import jax.numpy as jnp
import pytest

import jaxprune as jp
from jaxprune.deprecated import renamed_names
from jaxprune.experiments.compare.chosen import MAKE
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


def test_the_warning_names_the_line_that_used_the_old_name():
    find = renamed_names("some.module", {"old": ("new", 3)})
    with pytest.warns(DeprecationWarning, match=r"`some.module.old` .* `some.module.new`") as caught:
        assert find("old") == 3
    assert caught[0].filename == __file__
