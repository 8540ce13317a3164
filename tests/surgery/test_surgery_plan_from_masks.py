"""Plans from masks: what a plan's masks say, and what is masked in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import random_plan
from test_surgery_coupled import MODELS, PARAMS, X, unit

import jaxprune as jp
from jaxprune.surgery.coupled_units import coupled_units
from jaxprune.tree_nodes import leaves_of


@pytest.fixture(scope="module")
def groups():
    return jp.find_groups(unit, PARAMS, X)


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("name", MODELS)
def test_masks_plans_and_units_tell_the_same(name):
    """Masks of a plan give the plan back, masks of the units of a plan are the plan's."""
    fn, params, inputs = MODELS[name]()
    groups = jp.find_groups(fn, params, *inputs)
    plan = random_plan(groups, seed=5)
    masks = plan.masks(params)
    again = jp.plan_from_masks(groups, masks)
    assert plan.small_shapes == again.small_shapes
    for path, axes in plan.kept.items():
        for a, b in zip(axes, again.kept[path], strict=True):
            np.testing.assert_array_equal(True if a is None else a, True if b is None else b)
    if not len(groups):
        return
    paths = [leaf.path for leaf in leaves_of(params)]
    cut = coupled_units(groups, range(len(groups)), paths)
    pruned = cut.pruned([np.broadcast_to(plan.mask(path), plan.shapes[path]) for path in paths])
    for path, mask in zip(paths, cut.masks([~units for units in pruned]), strict=True):
        np.testing.assert_array_equal(
            np.broadcast_to(mask, plan.shapes[path]), np.broadcast_to(plan.mask(path), plan.shapes[path])
        )


def test_plan_from_masks_names_what_is_masked_in_part(groups):
    full = {"up": True, "b": True, "down": True, "out": True}
    assert jp.plan_from_masks(groups, full).small_shapes["up"] == (2, 4)
    b = jnp.array([True, False, True, True])
    with pytest.raises(
        ValueError, match=r"unit 1 of group 'b\[0\]' in part: all of it at 'b', but not at 'down'"
    ):
        jp.plan_from_masks(groups, {**full, "b": b})
    one = jnp.ones((2, 4), bool).at[0, 1].set(False)
    with pytest.raises(
        ValueError, match=r"weights at 'up' \(such as \(0, 1\)\).*the groups there are 'b\[0\]'"
    ):
        jp.plan_from_masks(groups, {**full, "up": one})
    with pytest.raises(ValueError, match=r"weights at 'out' .*no group touches it"):
        jp.plan_from_masks(groups, {**full, "out": jnp.zeros(1, bool)})
    none = {"up": jnp.zeros((1, 4), bool), "b": jnp.zeros(4, bool), "down": False, "out": True}
    with pytest.raises(ValueError, match=r"all 4 units of group 'b\[0\]'"):
        jp.plan_from_masks(groups, none)
    with pytest.raises(ValueError, match="lacks 'down'"):
        jp.plan_from_masks(groups, dict.fromkeys(("up", "b", "out"), True))
    with pytest.raises(ValueError, match="has 'more' besides"):
        jp.plan_from_masks(groups, {**full, "more": jnp.zeros(1, bool)})
    with pytest.raises(ValueError, match=r"got shape \(3,\) at 'b' of shape \(4,\)"):
        jp.plan_from_masks(groups, {**full, "b": jnp.ones(3, bool)})
    with pytest.raises(TypeError, match="got float32 at 'b'"):
        jp.plan_from_masks(groups, {**full, "b": jnp.ones(4)})
    with pytest.raises(ValueError, match="traced array at 'b'"):
        jax.jit(lambda b: jp.plan_from_masks(groups, {**full, "b": b}) and 0)(b)
