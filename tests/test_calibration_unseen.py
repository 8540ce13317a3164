"""What the calibration data say nothing about: inputs that are always 0, experts without rows, no rows."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from one_weight import dense, draw

import jaxprune as jp

METHODS = [
    jp.MaskOnly("magnitude"),
    jp.MaskOnly("wanda"),
    jp.MaskOnly("wanda", per_output=False),
    jp.MaskOnly("ria"),
    jp.SparseGPT(),
    jp.ADMM(),
]
UNSEEN = [3, 7, 8, 9, 10, 11]  # inputs of the models below that are always 0


def partly_unseen(seed, rows=40, inputs=16):
    return draw(seed, rows, inputs).at[:, jnp.array(UNSEEN)].set(0)


def assert_kept(params, new, masks, unseen, share):
    """Exactly the asked share is pruned and zero, and what is kept of `unseen` has every bit of its value."""
    for name, rows in unseen.items():
        w, now, mask = (np.asarray(tree[name]) for tree in (params, new, masks))
        assert np.sum(~mask) == round(share * w.size)
        np.testing.assert_array_equal(now == 0, ~mask)
        here = np.broadcast_to(rows, w.shape) & mask
        np.testing.assert_array_equal(now[here], w[here])


# Inputs that are always 0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_weights_of_unseen_inputs_are_pruned_as_asked_and_otherwise_kept(method):
    params, x = {"w": draw(0, 16, 6)}, partly_unseen(1)
    unseen = {"w": np.isin(np.arange(16), UNSEEN)[:, None]}
    for structure, share in ((jp.Unstructured(), 0.25), (jp.NM(2, 4), 0.5)):
        with pytest.warns(UserWarning, match=r"say nothing about .*'w' \(36 of 96\)"):
            new, masks = jp.reconstruct(dense, params, [x], share, structure, method)
        assert_kept(params, new, masks, unseen, share)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"refine": (jp.LeastSquares(4),)},
        {"refine": (jp.Swaps(4),)},
        {"refine": (jp.Swaps(4, dense_values=True), jp.LeastSquares(3))},
        {"fisher": {"w": jnp.abs(draw(5, 16, 6))}},
        {"dense_targets": 0.5},
    ],
    ids=["least squares", "swaps", "swaps with dense values", "fisher", "dense targets"],
)
def test_no_refinement_weighting_or_target_changes_what_is_not_known(more):
    params, x = {"w": draw(0, 16, 6)}, partly_unseen(1)
    unseen = {"w": np.isin(np.arange(16), UNSEEN)[:, None]}
    with pytest.warns(UserWarning, match="'w'"):
        new, masks = jp.reconstruct(dense, params, [x], 0.25, **more)
    assert_kept(params, new, masks, unseen, 0.25)


@pytest.mark.slow
def test_a_block_counts_what_is_known_of_it():
    """Rows 4 to 7 are unseen but for one input of large weights; rows 8 to 11 are unseen and pruned first."""
    w = jnp.ones((16, 4)).at[4:8].set(5.0)
    x = draw(1, 40, 16).at[:, jnp.array([4, 5, 6, 8, 9, 10, 11])].set(0)
    for method in (jp.MaskOnly(), jp.SparseGPT(), jp.ADMM()):
        with pytest.warns(UserWarning, match="'w'"):
            new, masks = jp.reconstruct(dense, {"w": w}, [x], 0.25, jp.Block((4, 4)), method)
        np.testing.assert_array_equal(np.asarray(masks["w"])[:, 0], np.arange(16) // 4 != 2)
        np.testing.assert_array_equal(new["w"][4:7], 5.0)


def dispatch(x):
    return jax.nn.one_hot(jnp.where(x[:, 0] > 0, 0, 1), 3)


def by_vmap(params, x):
    hidden = jax.vmap(lambda rows, w: rows @ w)(jnp.einsum("te,td->etd", dispatch(x), x), params["up"])
    return jax.vmap(lambda rows, w: rows @ w)(jax.nn.relu(hidden), params["down"]).sum(0)


def by_scan(params, x):
    def expert(total, parts):
        up, down, mine = parts
        return total + jax.nn.relu((x * mine[:, None]) @ up) @ down, None

    return lax.scan(expert, jnp.zeros_like(x), (params["up"], params["down"], dispatch(x).T))[0]


def by_ragged_dot(params, x):
    order = jnp.argsort(x[:, 0] <= 0)
    sizes = dispatch(x).sum(0).astype(jnp.int32)
    hidden = jax.nn.relu(lax.ragged_dot(x[order], params["up"], sizes))
    return lax.ragged_dot(hidden, params["down"], sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fn", "method"),
    [
        (by_vmap, jp.MaskOnly()),
        (by_vmap, jp.SparseGPT()),
        (by_vmap, jp.ADMM()),
        (by_scan, jp.MaskOnly()),
        (by_ragged_dot, jp.ADMM()),
    ],
)
def test_an_expert_that_no_row_reaches_keeps_its_largest_weights(fn, method):
    params = {"up": draw(2, 3, 8, 16), "down": draw(3, 3, 16, 8)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        new, masks = jp.reconstruct(fn, params, [draw(4, 64, 8)], 0.25, method=method)
    (said,) = [str(w.message) for w in caught if "say nothing" in str(w.message)]
    assert "'up' (128 of 384)" in said and "'down' (128 of 384)" in said
    assert_kept(params, new, masks, {name: np.arange(3)[:, None, None] == 2 for name in params}, 0.25)
    for name, w in params.items():
        size, kept = np.abs(w[2]), np.asarray(masks[name])[2]
        if isinstance(method, jp.MaskOnly):  # each output by itself
            assert all(
                size[:, o][kept[:, o]].min() > size[:, o][~kept[:, o]].max() for o in range(w.shape[2])
            )
        elif isinstance(method, jp.ADMM):
            assert size[kept].min() > size[~kept].max()


@pytest.mark.slow
def test_experts_by_ragged_dot_are_pruned_as_their_rows_alone():
    params, x = {"up": draw(2, 3, 8, 16), "down": draw(3, 3, 16, 8)}, draw(4, 48, 8)
    x = x.at[:, 0].set(jnp.where(jnp.arange(48) < 30, 1, -1) * jnp.abs(x[:, 0]))
    with pytest.warns(UserWarning, match="'up'"):
        new, _ = jp.reconstruct(by_ragged_dot, params, [x], 0.5)
    for expert, rows in enumerate((x[:30], x[30:])):
        alone, _ = jp.reconstruct(dense, {"w": params["up"][expert]}, [rows], 0.5)
        np.testing.assert_allclose(new["up"][expert], alone["w"], rtol=1e-4, atol=1e-5)


def test_masks_alone_leave_every_bit_of_the_kept_weights():
    params, x = {"w": draw(0, 16, 6) * 0.1}, draw(1, 40, 16)
    new, masks = jp.reconstruct(
        dense, params, [x], 0.5, method=jp.MaskOnly(), fisher={"w": draw(5, 16, 6) ** 2}
    )
    np.testing.assert_array_equal(new["w"], jnp.where(masks["w"], params["w"], 0))


@pytest.mark.slow
def test_swap_refine_keeps_unseen_weights_and_all_that_has_no_mask():
    params = {"w": draw(0, 16, 6), "bias": jnp.zeros(6)}
    fn = lambda p, x: x @ p["w"] + p["bias"]  # noqa: E731
    masks = jp.make_masks({"w": jnp.abs(params["w"]), "bias": params["bias"]}, 0.5)
    pruned = jp.apply_masks(params, masks) | {"bias": jnp.arange(6.0)}
    with pytest.warns(UserWarning, match="'w'"):
        new, better = jp.swap_refine(fn, params, pruned, masks, [partly_unseen(1)])
    np.testing.assert_array_equal(new["bias"], jnp.arange(6.0))
    rows = {"w": np.isin(np.arange(16), UNSEEN)[:, None]}
    assert_kept(params, {"w": new["w"]}, {"w": better["w"]}, rows, 0.5)
    assert better["bias"] is True


@pytest.mark.slow
def test_swap_refine_leaves_masked_weights_that_multiply_nothing_as_they_are():
    params = {"w": draw(0, 8, 6), "table": draw(1, 4, 8)}
    fn = lambda p, x: (x + p["table"][0]) @ p["w"]  # noqa: E731
    masks = jp.make_masks(jax.tree.map(jnp.abs, params), 0.5, where={"w": True, "table": True})
    pruned = jp.apply_masks(params, masks)
    new, better = jp.swap_refine(fn, params, pruned, masks, [draw(2, 30, 8)])
    np.testing.assert_array_equal(new["table"], pruned["table"])
    np.testing.assert_array_equal(better["table"], masks["table"])
    with pytest.raises(ValueError, match=r"`masks` must be NM\(2, 4\) along the inputs, got .* at 'w'"):
        jp.swap_refine(fn, params, pruned, masks, [draw(2, 30, 8)], jp.NM(2, 4))


def test_compensate_keeps_what_it_does_not_know_and_names_it():
    params = {"up": draw(0, 6, 8).at[:, 2].set(0), "down": draw(1, 8, 3)}
    fn = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]  # noqa: E731
    x = draw(2, 40, 6)
    groups = jp.find_groups(fn, params, x)
    plan = jp.surgery.plan_units(groups, {"down[0]": np.arange(8) != 5})
    with pytest.warns(UserWarning, match=r"'down' \(3 of 24\)"):
        new = jp.compensate(fn, params, plan, [x])
    np.testing.assert_array_equal(new["down"][2], params["down"][2])
    assert not np.array_equal(new["down"][0], params["down"][0])


@pytest.mark.slow
def test_calibrate_names_matrices_without_any_input_and_nothing_less():
    params = {"up": draw(2, 3, 8, 16), "down": draw(3, 3, 16, 8)}
    with pytest.warns(UserWarning, match=r"'up' \(128 of 384\), 'down' \(128 of 384\)"):
        stats = jp.calibrate(by_vmap, params, [draw(4, 64, 8)])
    masks = jp.make_masks(jp.scores.wanda(params, stats), 0.25, scope="local")
    for o in range(16):  # the smallest weights of the expert, not its first ones
        size, kept = np.abs(params["up"][2, :, o]), np.asarray(masks["up"])[2, :, o]
        assert size[kept].min() > size[~kept].max()
    jp.calibrate(dense, {"w": draw(0, 16, 6)}, [partly_unseen(1)])


# Rows


@pytest.mark.parametrize("method", METHODS[3:], ids=str)
def test_no_row_is_an_error(method):
    w, x = draw(0, 8, 4), draw(1, 20, 8)
    with pytest.raises(ValueError, match=r"`batches` must give every weight at least one row .* 'w'"):
        jp.reconstruct(dense, {"w": w}, [x[:0]], method=method)
    with pytest.raises(ValueError, match=r"`row_weights` must give .* 'w'"):
        jp.reconstruct(dense, {"w": w}, [x], method=method, row_weights=lambda x: jnp.zeros(20))
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="at least one batch"):
            jp.reconstruct(dense, {"w": w}, nothing, method=method)


def test_no_row_is_an_error_for_statistics_and_for_a_weight_used_twice():
    w, x = draw(0, 8, 8), draw(1, 20, 8)
    twice = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"]  # noqa: E731
    for call in (jp.calibrate, jp.reconstruct):
        with pytest.raises(ValueError, match=r"at least one row .* 'w'"):
            call(twice, {"w": w}, [x[:0], x[:0]])
    masks = {"w": jnp.abs(w) > 0.5}
    with pytest.raises(ValueError, match=r"at least one row .* 'w'"):
        jp.swap_refine(dense, {"w": w}, jp.apply_masks({"w": w}, masks), masks, [x[:0]])
