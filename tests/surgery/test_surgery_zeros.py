"""Which values are zero at pruned units: every claim holds in every model, and such values get no mask."""

import collections

import jax
import jax.numpy as jnp
import library_models
import numpy as np
import plain_models
import pytest
from checks import difference, random_masks
from flax import linen as nn

import jaxprune as jp
from jaxprune.jaxprs import is_array_leaf
from jaxprune.surgery import plan_units
from jaxprune.surgery.evaluation.training import MaskedTraining

MODELS = {**plain_models.MODELS, **library_models.MODELS}


class Checked(MaskedTraining):
    """Asserts what is claimed of the result of every equation whose values are known."""

    claims = 0

    def equation(self, frame, eqn, args):
        results = super().equation(frame, eqn, args)
        for var, value in zip(eqn.outvars, results, strict=True):
            axes = frame.of(var)
            for dim in self.zeros.of(frame, var, axes):
                if isinstance(value, jax.core.Tracer):
                    continue
                kept = np.asarray(self.keep.mask(axes[dim]))
                lost = np.compress(~kept, np.asarray(value), axis=dim)
                assert not lost.any(), (eqn.primitive.name, str(frame.source(eqn)))
                Checked.claims += lost.size > 0
        return results


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_said_to_be_zero_at_pruned_units_is(name, monkeypatch):
    fn, params, inputs = MODELS[name]()
    groups = jp.find_groups(fn, params, *inputs)
    masks = plan_units(groups, random_masks(groups, 1)).masks(params)
    rng = np.random.default_rng(0)
    noise = [
        w + jnp.asarray(rng.normal(size=w.shape), w.dtype)
        if is_array_leaf(w) and jnp.issubdtype(w.dtype, jnp.floating)
        else w
        for w in jax.tree.leaves(params)
    ]
    monkeypatch.setattr("jaxprune.surgery.masked_function.MaskedTraining", Checked)
    monkeypatch.setattr(Checked, "claims", 0)
    jp.masked_fn(fn, groups)(jax.tree.unflatten(jax.tree.structure(params), noise), masks, *inputs)
    assert Checked.claims or name in UNSEEN


UNSEEN = ("LSTM", "top_k over units")  # inside a loop, or read by a product at once


class Block(nn.Module):
    """What a vision transformer does with units: two norms, heads, a residual stream, a wide layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(12)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=3)(nn.LayerNorm()(x))
        x = x + nn.Dense(12)(nn.gelu(nn.Dense(20)(nn.LayerNorm()(x)), approximate=False))
        return nn.Dense(2)(nn.LayerNorm()(x).mean(1))


class ConvNet(nn.Module):
    """What a residual CNN does with them."""

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu(norm(nn.Conv(8, (3, 3))(x)))
        y = norm(nn.Conv(8, (3, 3))(nn.relu(norm(nn.Conv(6, (3, 3))(x)))))
        return nn.Dense(3)(nn.max_pool(nn.relu(x + y), (2, 2), (2, 2)).mean((1, 2)))


@pytest.mark.parametrize(("model", "shape"), [(Block(), (2, 5, 4)), (ConvNet(), (2, 6, 6, 3))])
def test_a_transformer_and_a_residual_network_have_masks_at_their_parameters_only(model, shape):
    x = jnp.ones(shape)
    params = model.init(jax.random.key(0), x)
    groups = jp.find_groups(model.apply, params, x)
    masks = jax.tree.map(
        jnp.asarray, jp.make_masks(jp.scores.magnitude(params), 0.5, "local", jp.Coupled(groups))
    )
    names = collections.Counter()

    def count(jaxpr):
        for eqn in jaxpr.eqns:
            is_mask = eqn.primitive.name == "select_n" and eqn.outvars[0].aval.ndim == len(shape)
            names.update([eqn.outvars[0].aval.shape] if is_mask else [])
            for value in eqn.params.values():
                if hasattr(value, "jaxpr"):
                    count(value.jaxpr)

    count(jax.make_jaxpr(jp.masked_fn(model.apply, groups))(params, masks, x).jaxpr)
    of_batch = [found for found in names if found[0] == shape[0] and found[1] == shape[1]]
    assert not of_batch


def scored(params, x):
    """Units that are not zero where they are pruned: their sum needs a mask."""
    return jnp.sum(jnp.cos(x @ params["up"] * params["scale"]), 1)


def test_what_is_not_zero_is_masked_in_value_and_gradient():
    params = {"up": jnp.arange(8.0).reshape(2, 4) / 8, "scale": jnp.arange(1.0, 5.0)}
    x = jnp.ones((3, 2))
    groups = jp.find_groups(scored, params, x)
    masks = jp.make_masks(params, 0.5, structure=jp.Coupled(groups))
    plan = jp.plan_from_masks(groups, masks)
    masked = jp.masked_fn(scored, groups)
    assert difference(plan.compact(scored)(plan.shrink(params), x), masked(params, masks, x)) < 1e-6
    assert difference(masked(params, masks, x), scored(jp.apply_masks(params, masks), x)) > 0.1


@jax.custom_vjp
def rounded_product(w, s):
    """Straight through: the cotangent of `w` is not multiplied by `s`."""
    return jnp.round(w * s)


rounded_product.defvjp(lambda w, s: (rounded_product(w, s), w), lambda w, g: (g, g * w))


def test_a_derivative_rule_that_forgets_the_zero_factor_reaches_no_kept_unit():
    def fn(params, x):
        h = jnp.cos(x @ params["up"]) * x[:, :1]  # not zero at pruned units
        return jnp.sum(rounded_product(h, jnp.broadcast_to(params["scale"], h.shape)), 1)

    params = {"up": jnp.arange(8.0).reshape(2, 4) / 8, "scale": jnp.arange(1.0, 5.0)}
    x = jnp.ones((3, 2))
    groups = jp.find_groups(fn, params, x)
    masks = jp.make_masks(params, 0.5, structure=jp.Coupled(groups))
    plan = jp.plan_from_masks(groups, masks)

    def gradient(f, params, *more):
        return jax.grad(lambda x: jnp.sum(f(params, *more, x)))(x)

    small = gradient(plan.compact(fn), plan.shrink(params))
    assert difference(gradient(jp.masked_fn(fn, groups), params, masks), small) < 1e-6


def cut_values(params, x):
    """A pad with a number that is not zero, an unusual fill, a maximum over units, a sum along them."""
    h = x @ params["up"]
    wide = jnp.pad(h, ((0, 1), (0, 0)), constant_values=1.0)
    table = params["up"].at[jnp.array([0, 7])].get(mode="fill", fill_value=2.0)
    most = jnp.max(params["up"] @ params["down"], 0)
    return wide.sum(1), table.sum(1), (most[None] * jnp.cumsum(h, 1)).sum(1), jnp.square(h**3).sum(1)


def test_numbers_that_come_in_elsewhere_are_masked():
    rng = np.random.default_rng(0)
    params = {"up": jnp.asarray(rng.normal(size=(2, 4))), "down": jnp.asarray(rng.normal(size=(4, 4)))}
    x = jnp.ones((3, 2))
    groups = jp.find_groups(cut_values, params, x)
    assert groups.groups
    plan = plan_units(groups, random_masks(groups))
    masked = jp.masked_fn(cut_values, groups)(params, plan.masks(params), x)
    assert difference(plan.compact(cut_values)(plan.shrink(params), x), masked) < 1e-5
