"""A structure whose units lie across several leaves goes through `make_masks`, `gradual` and `imp` like any other."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.structures.keep import Highest


@dataclasses.dataclass(frozen=True)
class Linked:
    """Unit j: column j of leaf `a`, entry j of leaf `bias` and row j of leaf `b`; its score is the sum."""

    fixed_sparsity: ClassVar[None] = None

    def check_scope(self, scope):
        del scope

    def check_sparsity(self, share, path):
        del share, path

    def default_leaves(self, leaves):
        return [i for i, leaf in enumerate(leaves) if leaf.path in ("a", "b", "bias")]

    def cut(self, leaves, chosen):
        shapes = {leaves[i].path: leaves[i].value.shape for i in chosen}
        if shapes["a"][-1] != shapes["b"][0]:
            raise ValueError(f"'a' has {shapes['a'][-1]} columns, but 'b' {shapes['b'][0]} rows.")
        return LinkedUnits(tuple(shapes), shapes["b"][0])


@dataclasses.dataclass(frozen=True)
class LinkedUnits:
    paths: tuple[str, ...]
    size: int
    names: ClassVar[tuple[str, ...]] = ("a and b",)
    least: ClassVar[tuple[int, ...]] = ()
    budget: ClassVar[None] = None

    @property
    def shapes(self):
        return ((self.size,),)

    def shares(self, shares):
        return shares[:1]

    def scores(self, leaves):
        return [sum(self._rows(path, leaf).sum(0) for path, leaf in zip(self.paths, leaves, strict=True))]

    def pruned(self, masks):
        if any(mask is None for mask in masks):
            return [None]
        alive = [self._rows(path, mask).any(0) for path, mask in zip(self.paths, masks, strict=True)]
        return [~jnp.any(jnp.stack(alive), axis=0)]

    def masks(self, kept):
        (keep,) = kept
        shapes = {"a": (1, self.size), "b": (self.size, 1), "bias": (self.size,)}
        return [keep.reshape(shapes[path]) for path in self.paths]

    def counts_to_compare(self, counts):
        return counts

    def select(self, units, counts, pruned, unprotected=None):
        return Highest().select(units, counts, pruned, unprotected)

    def _rows(self, path, leaf):
        """A row for each weight of a unit, a column for each unit."""
        return leaf.T if path == "b" else jnp.atleast_2d(leaf)


A = jnp.array([[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0]])
B = jnp.array([[5.0], [1.0], [1.0], [1.0]])
PARAMS = {"a": A, "b": B, "bias": jnp.array([0.0, 3.0, 0.0, 0.0]), "c": jnp.ones((1, 3))}
SCORES = [7.0, 6.0, 4.0, 5.0]  # of the units


def kept_units(masks):
    """Asserts that the leaves agree, and that the leaf of no unit is kept."""
    a, b, bias = (np.ravel(masks[name]) for name in ("a", "b", "bias"))
    assert masks["a"].shape == (1, 4) and masks["b"].shape == (4, 1) and bool(masks["c"])
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, bias)
    return np.flatnonzero(a).tolist()


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize(("sparsity", "kept"), [(0.25, [0, 1, 3]), (0.5, [0, 1]), (0.75, [0])])
def test_make_masks_compares_units_by_all_their_weights(scope, sparsity, kept):
    masks = jp.make_masks(PARAMS, sparsity, scope=scope, structure=Linked())
    assert kept_units(masks) == kept and masks["c"] is True
    traced = jax.jit(lambda s: jp.make_masks(PARAMS, s, scope=scope, structure=Linked()))(sparsity)
    assert kept_units(traced) == kept


@pytest.mark.slow
def test_prior_minimum_and_errors():
    prior = jp.make_masks({**PARAMS, "b": -10 * B}, 0.25, structure=Linked())  # without unit 0
    assert kept_units(prior) == [1, 2, 3]
    assert kept_units(jp.make_masks(PARAMS, 0.5, structure=Linked(), prior=prior)) == [1, 3]
    assert kept_units(jp.make_masks(PARAMS, 0.5, structure=Linked(), minimum=2)) == [0, 1]
    with pytest.raises(ValueError, match="`minimum` keeps 3 of 4 units in all, but `sparsity` prunes 2"):
        jp.make_masks(PARAMS, 0.5, structure=Linked(), minimum=3)
    with pytest.raises(ValueError, match="`minimum` asks for 3 of the 4 units at 'a and b'"):
        jp.make_masks(PARAMS, 0.5, structure=Linked(), minimum=3, scope="local")
    with pytest.raises(ValueError, match="1 NaN and 0 -inf of 4 at 'b'"):
        jp.make_masks({**PARAMS, "b": B.at[0, 0].set(jnp.nan)}, 0.5, structure=Linked())
    with pytest.raises(ValueError, match="'a' has 4 columns, but 'b' 3 rows"):
        jp.make_masks({**PARAMS, "b": B[:3]}, 0.5, structure=Linked())


def test_shuffled_masks_keep_units_together():
    masks = jp.make_masks(PARAMS, 0.5, structure=Linked())
    arrays = {**masks, "c": True}
    assert all(
        len(kept_units(jp.shuffle_masks(arrays, Linked(), key=jax.random.key(seed)))) == 2
        for seed in range(3)
    )


def test_gradual_prunes_units_and_zeroes_all_their_weights():
    tx = jp.gradual(optax.sgd(0.0), jp.schedules.iterative(0.5, rounds=2), structure=Linked())
    params, state, seen = PARAMS, tx.init(PARAMS), []
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(kept_units(jp.get_masks(state)))
    assert seen == [[0, 1, 3], [0, 1]]
    assert params["a"][:, 2:].tolist() == [[0, 0], [0, 0]] and params["bias"].tolist() == [0, 3, 0, 0]
    np.testing.assert_array_equal(params["b"], B * jnp.array([[1], [1], [0], [0]]))


@pytest.mark.slow
def test_imp_prunes_units_round_by_round():
    def train_step(state, batch):
        del batch
        return state, {}

    state = TrainState.create(apply_fn=None, params=PARAMS, tx=jp.masked(optax.sgd(0.0)))
    experiment = jp.imp(
        train_step,
        lambda key, step: step,
        steps=1,
        rounds=2,
        rate=0.5,
        structure=Linked(),
        minimum=1,
        keep_masks=True,
    )
    trained, history = jax.jit(experiment.run)(jax.random.key(0), state)
    rows = [kept_units(jax.tree.map(lambda m, r=r: m[r], history.masks)) for r in range(3)]
    assert rows == [[0, 1, 2, 3], [0, 1], [0]]
    assert history.kept.tolist() == [16, 8, 4] and not bool(trained.params["a"][:, 1:].any())
