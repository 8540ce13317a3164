"""On every model of the tests: masks of coupled units make a plan, and its small function is the masked one."""

import functools

import branch_models
import expert_models
import jax
import library_models
import numpy as np
import plain_models
import pytest
from checks import difference
from random_models import random_model

import jaxprune as jp
from jaxprune.surgery.coupled_units import coupled_units
from jaxprune.tree_nodes import leaves_of


def with_branches(layer):
    return lambda: (branch_models.language_model(layer), branch_models.listed(2), (branch_models.IDS,))


def with_experts(form):
    return lambda: (form.fn, expert_models.parameters(form), (expert_models.inputs(),))


ZOO = {
    **plain_models.MODELS,
    **library_models.MODELS,
    **{
        f"branches, {f.__name__}": with_branches(f) for f in (branch_models.pre_norm, branch_models.post_norm)
    },
    "branches, parallel": with_branches(branch_models.parallel),
    "branches, scanned": lambda: (branch_models.scanned, branch_models.stacked(), (branch_models.IDS,)),
    "branches, ResNet": lambda: (
        branch_models.resnet,
        branch_models.arrays(branch_models.RESNET),
        (branch_models.IMAGES,),
    ),
    **{f"experts, {name}": with_experts(form) for name, form in expert_models.FORMS.items()},
    **{f"random {seed}": functools.partial(random_model, seed, seed % 2 == 1) for seed in range(20)},
}


def lost_units(groups, masks):
    leaves = leaves_of(masks)
    cut = coupled_units(groups, range(len(groups)), [leaf.path for leaf in leaves])
    lost = cut.pruned([np.asarray(leaf.value) if hasattr(leaf.value, "dtype") else None for leaf in leaves])
    return [0 if units is None else int(np.sum(units)) for units in lost]


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("name", ZOO)
def test_coupled_masks_then_shrink_is_the_masked_function(name):
    fn, params, inputs = ZOO[name]()
    groups = jp.find_groups(fn, params, *inputs)
    if not groups:
        assert name.startswith("random")  # these may freeze all
        return
    scores = jp.scores.random(params, jax.random.key(0))
    masked = jax.jit(jp.masked_fn(fn, groups))
    sizes, least = [group.size for group in groups], [group.minimum for group in groups]
    for scope, sparsity in (("local", 0.5), ("global", 0.3)):
        if scope == "local" and any(n - round(0.5 * n) < m for n, m in zip(sizes, least, strict=True)):
            with pytest.raises(ValueError, match="`minimum` asks for"):
                jp.make_masks(scores, sparsity, scope, jp.Coupled(groups))
            continue
        if round(0.3 * sum(sizes)) > sum(sizes) - sum(least):
            continue
        masks = jp.make_masks(scores, sparsity, scope, jp.Coupled(groups))
        plan, lost = jp.plan_from_masks(groups, masks), lost_units(groups, masks)
        if scope == "local":
            assert lost == [round(0.5 * n) for n in sizes]
        else:
            assert sum(lost) == round(0.3 * sum(sizes))
        small = jax.jit(plan.compact(fn))(plan.shrink(params), *inputs)
        assert difference(small, masked(params, masks, *inputs)) < 1e-5
