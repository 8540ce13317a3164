"""A leaf of size 0 has no units and takes none of what is to be pruned."""

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp

W = jax.random.normal(jax.random.key(0), (4, 4))
PARAMS = {"rows": jnp.zeros((0, 4)), "columns": jnp.zeros((4, 0)), "v": W, "w": 2 * W}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    "structure",
    [jp.Unstructured(), jp.Channels(), jp.Channels(0), jp.Layers(), jp.Block((2, 2)), jp.NM(2, 4)],
    ids=str,
)
def test_masks_prune_the_asked_share_of_what_there_is(structure):
    scope = "local" if isinstance(structure, jp.Channels) else "global"
    masks = jp.make_masks(jp.scores.magnitude(PARAMS), 0.5, scope=scope, structure=structure)
    assert jp.sparsity(PARAMS, masks) == 0.5
    assert jp.summary(PARAMS, masks).prunable == 32
    assert jax.tree.map(jnp.shape, jp.apply_masks(PARAMS, masks)) == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.slow
def test_allocations_share_out_among_the_others():
    scores = jp.scores.magnitude(PARAMS)
    cost = {"rows": 0, "columns": 0, "v": 32, "w": 32}
    for shares, units in (
        (jp.allocate.uniform(PARAMS, 0.5), 16),
        (jp.allocate.erk(PARAMS, 0.5), 16),
        (jp.allocate.owl(scores, 0.5), 16),
        (jp.allocate.from_scores(scores, 0.5), 16),
        (jp.allocate.from_scores(scores, 0.5, structure=jp.Channels()), 4),
        (jp.allocate.flops(scores, 0.5, cost), 16),
    ):
        assert shares["rows"] == shares["columns"] == 0
        assert round(shares["v"] * units) + round(shares["w"] * units) == units
