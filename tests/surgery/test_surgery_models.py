"""Every architecture: which groups must be found, and that the small function is the masked one."""

import jax
import library_models
import numpy as np
import plain_models
import pytest
from checks import difference, gradient_error, masked_function, permuted, places_of, random_plan

import jaxprune as jp
from jaxprune.surgery.orders.fixed_order import fixed_orders

MODELS = {**plain_models.MODELS, **library_models.MODELS}

# The sizes of the groups that must be found, and what may not be in them.
GROUPS = {
    "mlp": [6, 8],
    "residual CNN": [6, 8],
    "transformer": [4, 4, 4, 4, 4, 4, 10, 10, 12],  # 2 x (heads, q/k dim, v dim), 2 x FFN, residual stream
    "llama": [2, 3, 4, 8, 10, 12],  # kv heads, queries per kv head, RoPE pairs, v dim, SwiGLU, residual
    "llama, RoPE from iota": [2, 3, 4, 8, 10, 12],
    "fused QKV (3 h d)": [3, 4],  # one array: q, k and v share their dimension
    "fused QKV (h 3 d)": [3, 4, 4],
    "fused QKV (split)": [3, 4, 4],
    "LSTM": [6],
    "depthwise": [8],
    "depth multiplier": [2, 6],
    "channel shuffle": [2, 2, 2, 4, 4],
    "channel shuffle, 3 groups": [4, 4],  # 3 groups of 4 against 4 of 3: shuffled channels stay
    "squeeze-excite": [4, 8],
    "U-Net": [5, 6, 7, 8],
    "DenseNet": [3, 3, 3, 4],
    "scanned layers": [5, 6],
    "ensemble by vmap": [3, 6],
    "mixture of experts": [4, 6],
    "mixture of experts, top 2": [4, 6],
    "remat": [8],
    "custom_vjp": [6, 8],
    "loops": [5, 6],
    "dropout": [8],
    "padded shortcut": [2, 2, 4, 5],
    "slices": [3],
    "unknown primitive": [6],
    "softmax over units": [7],
    "1-D and 3-D convolutions": [5, 6],
    "mixed reductions": [2, 4, 6],
    "top_k over units": [8],
    "Linen CNN": [6, 8],
    "Linen ViT": [3, 3, 4, 4, 4, 4, 10, 14, 14],
    "Linen LM (remat, scan, tied)": [3, 3, 4, 4, 4, 4, 10, 14, 14],
    "Linen LSTM, GRU": [5, 6],
    "Linen MobileNet": [2, 2, 4, 5, 6],
    "NNX MLP": [8],
    "NNX attention": [3, 4, 4, 10, 12],
    "NNX CNN": [6, 8],
    "Equinox CNN": [2, 4, 6, 6],
    "Equinox attention, GRU": [2, 4, 4, 5, 8],
    "Haiku CNN": [6, 7, 8],
    "Haiku transformer, LSTM": [2, 4, 4, 5, 8, 12],
}

# Models where zeroing parameters is not removing units, and the reduction that differs.
ZEROING_DIFFERS = {
    "mixture of experts": "reduce_sum at plain_models.py",  # softmax over experts
    "mixture of experts, top 2": "top_k at plain_models.py",
    "softmax over units": "reduce_sum at plain_models.py",
    "mixed reductions": "reduce_sum at plain_models.py",  # logsumexp
    "Equinox CNN": "eqx.nn.GroupNorm",  # two-pass variance
    "Equinox attention, GRU": "eqx.nn.LayerNorm",
    "Haiku CNN": "layer_norm",
}

NOT_DIFFERENTIABLE = {"loops", "unknown primitive"}

# Groups whose units are told apart: by a constant (a RoPE angle), by their random numbers, by a cumulative sum over
# them, or where scores are equal, by a router.
ORDER_MATTERS = {
    "llama": {"k[1: 2 x ([4] + [4])]"},
    "llama, RoPE from iota": {"k[1: 2 x ([4] + [4])]"},
    "dropout": {"w1[1]"},
    "mixed reductions": {"w2[1]"},
    "mixture of experts, top 2": {"down[0]"},
    "top_k over units": {"w1[1]"},
    "Equinox CNN": {"conv/weight[0]"},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    fn, params, inputs = MODELS[request.param]()
    return request.param, fn, params, inputs, jp.find_groups(fn, params, *inputs)


def test_table_names_every_model():
    assert set(GROUPS) == set(MODELS)


@pytest.mark.slow_beyond(15)
def test_finds_the_groups(model):
    name, *_, groups = model
    assert sorted(group.size for group in groups) == GROUPS[name]


@pytest.mark.slow_beyond(1)
def test_small_function_equals_masked_function(model):
    name, fn, params, inputs, groups = model
    report = random_plan(groups, 0).verify(fn, params, *inputs, tolerance=1e-5)
    assert report.masked < 1e-5, str(report)
    if name in ZEROING_DIFFERS:
        assert any(ZEROING_DIFFERS[name] in difference for difference in report.differences), str(report)
    else:
        assert report.zeroed < 1e-5, str(report)


@pytest.mark.slow_beyond(1)
def test_gradients_equal_those_of_the_masked_function(model):
    name, fn, params, inputs, groups = model
    if name in NOT_DIFFERENTIABLE:
        pytest.skip("the model itself has no reverse-mode gradient")
    assert gradient_error(random_plan(groups, 2), fn, params, *inputs) < 1e-5


@pytest.mark.slow_beyond(1)
def test_runs_at_other_batch_sizes(model):
    name, fn, params, inputs, groups = model
    if name == "LSTM":
        more = (np.concatenate([inputs[0]] * 3, axis=1),)
    else:
        more = (np.concatenate([inputs[0]] * 3), *inputs[1:])
    plan = random_plan(groups, 3)
    small = jax.jit(plan.compact(fn))(plan.shrink(params), *more)
    masked = jax.jit(masked_function(plan, fn, params, *more))(params, *more)
    assert difference(small, masked) < 1e-5


@pytest.mark.slow_beyond(1)
def test_permuting_all_members_of_a_group_changes_nothing_and_fewer_changes_something(model):
    name, fn, params, inputs, groups = model
    fixed = fixed_orders(groups.model, {group.atom for group in groups})
    free = [group for group in groups if group.atom not in fixed]
    assert {group.name for group in groups} - {group.name for group in free} == ORDER_MATTERS.get(name, set())
    fn = jax.jit(fn)
    expected = fn(params, *inputs)
    for group in free:
        order = np.roll(np.arange(group.size), 1)
        assert difference(fn(permuted(groups, params, group.name, order), *inputs), expected) < 1e-4
        ranks = places_of(groups, group.name)
        changed = permuted(groups, params, group.name, order, leave_out=int(np.argmax(ranks)))
        assert len(ranks) == 1 or difference(fn(changed, *inputs), expected) > 1e-4, group.name
    rng = np.random.default_rng(0)
    orders = jp.surgery.unit_orders(groups, {group.name: rng.permutation(group.size) for group in free})
    moved = jp.permute(groups, params, orders=orders)
    assert difference(fn(moved, *inputs), expected) < 1e-6  # all groups at once
    back = orders.inverse().apply(moved)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(before, after)
