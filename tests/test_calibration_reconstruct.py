"""One-shot pruning: SparseGPT against brute force in float64, and what every method promises."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.calibration.mask_only import keep_highest_per_output

METHODS = [jp.MaskOnly("magnitude"), jp.MaskOnly("wanda"), jp.MaskOnly("ria"), jp.SparseGPT(), jp.ADMM()]
STRUCTURES = [jp.Unstructured(), jp.NM(2, 4), jp.Block((4, 3))]


def dense(params, x):
    return x @ params["w"]


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def correlated(seed, rows, inputs):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(inputs, inputs)) * np.logspace(0, -1, inputs)
    return jnp.asarray(rng.normal(size=(rows, inputs)) @ mix, jnp.float32)


def error(w, w0, *rows):
    x = np.concatenate([np.asarray(r, np.float64) for r in rows])
    return np.sum((x @ (np.asarray(w, np.float64) - np.asarray(w0, np.float64))) ** 2)


def prune(w, x, *args, fn=dense, **kwargs):
    params, masks = jp.reconstruct(fn, {"w": w}, [x], *args, **kwargs)
    return np.asarray(params["w"]), np.asarray(masks["w"])


def obs_by_deletion(w, h, mask_of_row):
    """SparseGPT by its definition: delete inputs one by one, each time with the inverse of what is left of H."""
    w = np.array(w, np.float64)
    mask = np.ones(w.shape, bool)
    for j in range(len(w)):
        inverse = np.linalg.inv(h[j:, j:])
        mask[j] = mask_of_row(j, w, inverse)
        error = np.where(mask[j], 0, w[j]) / inverse[0, 0]
        w[j:] -= np.outer(inverse[:, 0], error)
    return np.where(mask, w, 0), mask


def damped(x, share=0.01):
    h = np.asarray(x, np.float64).T @ np.asarray(x, np.float64)
    return h + share * np.mean(np.diag(h)) * np.eye(len(h))


def test_sparsegpt_unstructured_is_brute_force_obs():
    w, x = draw(0, 12, 7), correlated(1, 60, 12)
    h = damped(x)
    # Costs at the start of the (only) block: w^2 over the diagonal of the inverse of the trailing H.
    diagonal = np.array([np.linalg.inv(h[j:, j:])[0, 0] for j in range(12)])
    cost = np.asarray(w, np.float64) ** 2 / diagonal[:, None]
    keep = cost > np.sort(cost.ravel())[41]
    expected, _ = obs_by_deletion(w, h, lambda j, w, inverse: keep[j])
    got, mask = prune(w, x, 0.5, method=jp.SparseGPT())
    np.testing.assert_array_equal(mask, keep)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_sparsegpt_2_4_is_brute_force_obs():
    w, x = draw(0, 12, 7), correlated(1, 60, 12)
    h, keep = damped(x), np.ones((12, 7), bool)

    def mask_of_row(j, w, inverse):
        if j % 4 == 0:
            diagonal = np.array([np.linalg.inv(h[i:, i:])[0, 0] for i in range(j, j + 4)])
            cost = w[j : j + 4] ** 2 / diagonal[:, None]
            keep[j : j + 4] = np.argsort(np.argsort(cost, axis=0), axis=0) >= 2
        return keep[j]

    expected, mask = obs_by_deletion(w, h, mask_of_row)
    got, found = prune(w, x, 0.5, jp.NM(2, 4))
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_sparsegpt_blocks_change_nothing_but_the_choice():
    """With the mask given by 2:4, updates that wait for the end of a block are the same updates."""
    w, x = draw(0, 20, 7), correlated(1, 60, 20)
    whole = prune(w, x, 0.5, jp.NM(2, 4), jp.SparseGPT(block=128))
    lazy = prune(w, x, 0.5, jp.NM(2, 4), jp.SparseGPT(block=8))  # 20 is no multiple of 8
    np.testing.assert_array_equal(whole[1], lazy[1])
    np.testing.assert_allclose(whole[0], lazy[0], rtol=1e-3, atol=1e-4)


def test_least_squares_is_the_solution_of_each_output():
    w, x = draw(0, 8, 5), correlated(1, 60, 8)
    got, mask = prune(w, x, 0.5, method=jp.MaskOnly("wanda"), refine=(jp.LeastSquares(20),))
    x64, w64 = np.asarray(x, np.float64), np.asarray(w, np.float64)
    for o in range(5):
        kept = mask[:, o]
        solution = np.linalg.lstsq(x64[:, kept], x64 @ w64[:, o], rcond=None)[0]
        np.testing.assert_allclose(got[kept, o], solution, rtol=2e-3, atol=2e-4)


def test_swaps_find_the_best_mask_of_a_small_output():
    """2 of 4 kept in one group: six masks, the best one by least squares for each is brute force."""
    w, x = draw(0, 4, 6), correlated(1, 60, 4)
    refine = (jp.LeastSquares(20), jp.Swaps(20), jp.LeastSquares(20), jp.Swaps(20), jp.LeastSquares(20))
    got, _ = prune(w, x, 0.5, jp.NM(2, 4), jp.MaskOnly("magnitude"), refine=refine)
    x64, w64 = np.asarray(x, np.float64), np.asarray(w, np.float64)
    found = 0
    for o in range(6):
        best = min(
            np.linalg.lstsq(x64[:, kept], x64 @ w64[:, o], rcond=None)[1][0]
            for kept in itertools.combinations(range(4), 2)
        )
        ours = error(got[:, [o]], w[:, [o]], x)
        assert ours >= best * (1 - 1e-4)
        found += ours <= best * 1.001
    assert found >= 5


def test_swaps_with_dense_values_by_hand():
    """G = diag(1, 4), w = (3, 2): keeping 2 costs 9, keeping 3 costs 16. Magnitude keeps 3; the swap mends it."""
    w, x = jnp.array([[3.0], [2.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
    before, _ = prune(w, x, 0.5, method=jp.MaskOnly("magnitude"))
    after, mask = prune(w, x, 0.5, method=jp.MaskOnly("magnitude"), refine=(jp.Swaps(5, dense_values=True),))
    assert before.ravel().tolist() == [3, 0]
    assert after.ravel().tolist() == [0, 2] and mask.ravel().tolist() == [False, True]


@pytest.mark.filterwarnings("ignore:`batches` say nothing about weights")
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_counts_are_exact_pruned_is_zero_and_refinements_never_hurt(method, structure):
    w, x = (
        draw(0, 24, 10),
        correlated(1, 80, 24).at[:, 3].set(0.0),
    )  # 10 is no multiple of 3, an input is dead
    share = 0.5 if isinstance(structure, jp.NM) else 0.6
    got, mask = prune(w, x, share, structure, method)
    np.testing.assert_array_equal(got[~mask], 0)
    assert np.all(np.isfinite(got))
    if isinstance(structure, jp.Block):
        units = mask.reshape(6, 4, 10)[:, :, [0, 3, 6, 9]]
        assert np.sum(~units[:, 0]) == round(0.6 * 24)
        np.testing.assert_array_equal(mask, np.repeat(mask[::4], 4, axis=0))
        return
    if isinstance(structure, jp.NM):
        np.testing.assert_array_equal(mask.reshape(6, 4, 10).sum(axis=1), 2)
    else:
        assert np.sum(~mask) == round(0.6 * 240)
        if method != METHODS[0]:
            assert not mask[3].any()  # dead inputs go first
    start = error(got, w, x)
    for refine in ((jp.LeastSquares(5),), (jp.Swaps(10),)):
        better, new_mask = prune(w, x, share, structure, method, refine=refine)
        assert error(better, w, x) <= start * (1 + 1e-5)
        np.testing.assert_array_equal(better[~new_mask], 0)
        np.testing.assert_array_equal(new_mask.sum(axis=0), mask.sum(axis=0))
        if isinstance(structure, jp.NM):
            np.testing.assert_array_equal(new_mask.reshape(6, 4, 10).sum(axis=1), 2)


def test_methods_stand_in_the_order_of_what_they_know():
    w, x = draw(0, 24, 10), correlated(1, 200, 24)
    found = [error(prune(w, x, 0.5, method=m)[0], w, x) for m in METHODS]
    magnitude, wanda, _, sparsegpt, admm = found
    assert admm < sparsegpt < magnitude and admm < wanda < magnitude


@pytest.mark.parametrize("method", METHODS[3:], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_singular_inputs_give_finite_weights_and_small_errors(method, rows):
    w, x = draw(0, 24, 10), draw(1, rows, 24)
    got, mask = prune(w, x, 0.5, method=method, refine=(jp.LeastSquares(5),))
    assert np.sum(~mask) == 120 and np.all(np.isfinite(got))
    assert error(got, w, x) < 0.05 * error(0 * got, w, x)


@pytest.mark.filterwarnings("ignore:`batches` say nothing about weights")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_inputs_that_are_all_zero_are_pruned_without_nan(method):
    got, mask = prune(draw(0, 24, 10), jnp.zeros((4, 24)), 0.5, method=method, refine=(jp.Swaps(10),))
    assert np.sum(~mask) == 120 and np.all(np.isfinite(got))


@pytest.mark.parametrize("share", [0.0, 0.99])
def test_extreme_sparsities(share):
    w, x = draw(0, 24, 10), draw(1, 80, 24)
    for method in METHODS[3:]:
        got, mask = prune(w, x, share, method=method)
        assert np.sum(~mask) == round(share * 240)
        if share == 0:
            np.testing.assert_allclose(got, w, rtol=1e-4, atol=1e-4)


def test_each_layer_is_pruned_on_what_the_pruned_layers_give():
    params, x = {"a": draw(0, 8, 8), "b": draw(1, 8, 8)}, draw(2, 50, 8)
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    pruned, _ = jp.reconstruct(fn, params, [x[:25], x[25:]], 0.5)
    alone, _ = prune(params["a"], x, 0.5)
    np.testing.assert_allclose(pruned["a"], alone, rtol=1e-4, atol=1e-5)
    second, _ = prune(params["b"], jnp.tanh(x @ pruned["a"]), 0.5)
    np.testing.assert_allclose(pruned["b"], second, rtol=1e-3, atol=1e-4)


def test_scanned_layers_are_pruned_as_the_same_layers_in_a_list():
    w, x = draw(0, 3, 8, 8) / 2, draw(2, 50, 8)
    scan = lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]  # noqa: E731

    def loop(params, x):
        for w in params["w"]:
            x = jnp.tanh(x @ w)
        return x

    stacked, masks = jp.reconstruct(scan, {"w": w}, [x], 0.5)
    listed, _ = jp.reconstruct(loop, {"w": list(w)}, [x], 0.5)
    np.testing.assert_allclose(stacked["w"], jnp.stack(listed["w"]), rtol=1e-4, atol=1e-5)
    assert jp.sparsity(stacked, masks) == 0.5


def test_a_shared_weight_is_pruned_once_on_all_its_inputs():
    w, x = draw(0, 8, 8), draw(2, 50, 8)
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"]  # noqa: E731
    got, mask = prune(w, x, 0.5, fn=fn)
    together, _ = prune(w, jnp.concatenate([x, jnp.tanh(x @ w)]), 0.5)
    np.testing.assert_allclose(got, together, rtol=1e-3, atol=1e-4)
    assert np.sum(~mask) == 32


def test_an_allocation_counts_for_each_leaf_and_results_are_reported():
    params, x = {"a": draw(0, 8, 4), "b": draw(1, 4, 8)}, draw(2, 50, 8)
    results = []
    _, masks = jp.reconstruct(
        lambda p, x: x @ p["a"] @ p["b"],
        params,
        [x],
        {"a": 0.25, "b": 0.75},
        method=jp.MaskOnly("magnitude"),
        on_layer=results.append,
    )
    assert [int(np.sum(~np.asarray(masks[n]))) for n in "ab"] == [8, 24]
    assert [(r.path, r.sparsity) for r in results] == [("a", 0.25), ("b", 0.75)]
    assert all(0 < r.error < 1 for r in results)


def test_what_where_leaves_out_is_not_touched():
    params, x = {"a": draw(0, 8, 8), "b": draw(1, 8, 8)}, draw(2, 50, 8)
    pruned, masks = jp.reconstruct(
        lambda p, x: x @ p["a"] @ p["b"], params, [x], 0.5, where={"a": False, "b": True}
    )
    assert masks["a"] is True
    np.testing.assert_array_equal(pruned["a"], params["a"])


def test_weights_that_multiply_nothing_are_named_and_stay_dense():
    params = {"w": draw(0, 8, 8), "shift": draw(1, 8, 8)}
    fn = lambda p, x: (x + p["shift"]) @ p["w"]  # noqa: E731
    with pytest.warns(UserWarning, match="'shift'"):
        pruned, masks = jp.reconstruct(fn, params, [draw(2, 50, 8, 8)], 0.5)
    assert masks["shift"] is True
    np.testing.assert_array_equal(pruned["shift"], params["shift"])
    jp.reconstruct(fn, params, [draw(2, 50, 8, 8)], 0.5, where={"w": True, "shift": False})


def test_dense_parameters_and_batches_are_left_as_they_were():
    w, x = draw(0, 8, 8), draw(2, 50, 8)
    params = {"w": w + 0}
    jp.reconstruct(dense, params, [x], 0.5)
    np.testing.assert_array_equal(params["w"], w)


def test_dense_targets_make_up_for_the_layers_before():
    """What the model gives in the end comes nearer to the dense model."""
    x = correlated(9, 400, 8)
    params = {f"w{i}": draw(i, 8, 8) / 3 for i in range(4)}

    def fn(params, x):
        for w in params.values():
            x = x + jnp.tanh(x) @ w
        return x

    wanted = np.asarray(fn(params, x))
    found = []
    for targets in (0, 0.5, True):
        pruned, _ = jp.reconstruct(fn, params, [x[:200], x[200:]], 0.5, dense_targets=targets)
        found.append(np.sum((np.asarray(fn(pruned, x)) - wanted) ** 2))
    assert found[2] < found[1] < 0.98 * found[0]
    with pytest.raises(ValueError, match=r"`dense_targets` must be in \[0, 1\], got 2"):
        jp.reconstruct(fn, params, [x], 0.5, dense_targets=2)


@pytest.mark.parametrize("method", [jp.SparseGPT(), jp.ADMM()], ids=lambda m: type(m).__name__)
def test_fisher_scores_weigh_the_errors_of_the_outputs(method):
    w, x = draw(0, 16, 6), correlated(1, 80, 16)
    minded = np.array([1, 9, 0.1, 1, 4, 0], np.float32)
    fisher = w**2 * jnp.sum(x**2, axis=0)[:, None] * minded
    got, mask = prune(w, x, 0.5, method=method, fisher={"w": fisher})
    scale = np.sqrt(minded / minded.mean() + 1e-3)
    scaled, expected = prune(w * scale, x, 0.5, method=method)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_allclose(got, scaled / scale, rtol=1e-3, atol=1e-4)
    plain, _ = prune(w, x, 0.5, method=method)
    assert error(got * scale, w * scale, x) < error(plain * scale, w * scale, x)
    assert mask[:, 1].sum() > mask[:, 5].sum()


def test_fisher_scores_that_say_nothing_change_nothing_and_bad_ones_are_named():
    w, x = draw(0, 16, 6), correlated(1, 80, 16)
    plain, _ = prune(w, x, 0.5)
    alike, _ = prune(w, x, 0.5, fisher={"w": jnp.zeros((16, 6))})
    np.testing.assert_array_equal(alike, plain)
    _, mask = prune(w, x, structure=jp.NM(2, 4), fisher={"w": jnp.ones((16, 6)) * jnp.arange(6)})
    np.testing.assert_array_equal(mask, prune(w, x, structure=jp.NM(2, 4))[1])
    for bad in (-jnp.ones((16, 6)), jnp.full((16, 6), jnp.nan), jnp.ones((6, 16))):
        with pytest.raises(ValueError, match=r"`fisher` must have finite scores .* at 'w'"):
            prune(w, x, 0.5, fisher={"w": bad})
    with pytest.raises(ValueError, match="`fisher` must have the tree structure of the parameters"):
        prune(w, x, 0.5, fisher={"v": jnp.ones((16, 6))})


@pytest.mark.parametrize("score", ["magnitude", "wanda", "ria"])
def test_masks_by_a_score_need_the_diagonal_only(score):
    """What is reported asks for X^T X, and changes nothing else."""
    params = {"a": draw(0, 12, 6), "b": draw(1, 6, 4)}
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    fisher = jax.tree.map(jnp.square, params)
    found, layers = [], []
    for on_layer in (None, layers.append):
        found.append(
            jp.reconstruct(
                fn,
                params,
                [correlated(2, 40, 12)],
                0.5,
                method=jp.MaskOnly(score),
                fisher=fisher,
                on_layer=on_layer,
            )
        )
    (w, masks), (w_reported, masks_reported) = found
    jax.tree.map(np.testing.assert_array_equal, masks, masks_reported)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), w, w_reported)
    assert len(layers) == 2


@pytest.mark.parametrize("shape", [(7, 5), (1, 4), (6, 1)])
def test_each_output_is_pruned_alike_and_ties_go_by_index(shape):
    """Against ranks inside each output, for every count; what equal parts leave over goes by flat index."""
    scores = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
    ranks = np.argsort(np.argsort(scores, axis=0, kind="stable"), axis=0, kind="stable")
    order = np.argsort(ranks.ravel(), kind="stable")
    keep = jax.jit(keep_highest_per_output)
    for n_pruned in range(scores.size + 1):
        expected = np.ones(scores.size, bool)
        expected[order[:n_pruned]] = False
        np.testing.assert_array_equal(keep(scores, n_pruned), expected.reshape(shape))


def test_padding_rows_have_no_part_in_the_weights():
    w, x = draw(0, 8, 8), draw(2, 6, 10, 8)
    padding = jnp.arange(10) < 6
    weights = jnp.broadcast_to(padding, (6, 10))
    fn = lambda p, x, weights: x @ p["w"]  # noqa: E731
    params, _ = jp.reconstruct(fn, {"w": w}, [(x, weights)], 0.5, row_weights=lambda x, weights: weights)
    alone, _ = prune(w, x[:, :6].reshape(-1, 8), 0.5)
    np.testing.assert_allclose(params["w"], alone, rtol=1e-3, atol=1e-4)


def test_bfloat16_weights_stay_bfloat16():
    w, x = draw(0, 24, 10).astype(jnp.bfloat16), draw(2, 80, 24).astype(jnp.bfloat16)
    params, masks = jp.reconstruct(dense, {"w": w}, [x], 0.5, method=jp.ADMM())
    assert params["w"].dtype == jnp.bfloat16 and jp.sparsity(params, masks) == 0.5
    ours, dead = error(params["w"], w, x), error(0 * w, w, x)
    assert 0 < ours < 0.3 * dead


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_pruned_as_the_products_they_are(groups):
    """Each output's error on the convolution itself is that of least squares on its kept weights."""
    x, w = draw(0, 4, 6, 6, 8), draw(1, 3, 3, 8 // groups, 4)

    def fn(params, x):
        return lax.conv_general_dilated(
            x,
            params["w"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    got, mask = prune(w, x, 0.5, jp.NM(2, 4), jp.MaskOnly("wanda"), fn=fn)
    better, _ = prune(w, x, 0.5, jp.NM(2, 4), jp.MaskOnly("wanda"), fn=fn, refine=(jp.LeastSquares(60),))
    runs = mask.reshape(3, 3, -1, 4, 4)  # groups of four input channels
    np.testing.assert_array_equal(runs.sum(axis=3), 2)
    np.testing.assert_array_equal(better[~mask], 0)

    def loss(kept):
        return jnp.sum((fn({"w": jnp.where(mask, kept, 0)}, x) - fn({"w": w}, x)) ** 2)

    assert loss(better) < 0.95 * loss(jnp.asarray(got))
    slope = jax.grad(loss)(jnp.asarray(better))  # zero at the least squares solution
    assert jnp.max(jnp.abs(slope)) < 1e-3 * jnp.max(jnp.abs(jax.grad(loss)(jnp.asarray(got))))


def test_swap_refine_improves_a_pruned_model_and_keeps_its_pattern():
    params, x = {"a": draw(0, 8, 8), "b": draw(1, 8, 8)}, correlated(2, 100, 8)
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    for structure in (jp.Unstructured(), jp.NM(2, 4)):
        masks = jp.make_masks(jp.scores.magnitude(params), 0.5, structure=structure)
        pruned = jp.apply_masks(params, masks)
        better, new = jp.swap_refine(fn, params, pruned, masks, [x], structure)
        assert error(better["a"], params["a"], x) < 0.9 * error(pruned["a"], params["a"], x)
        for name in "ab":
            kept, before = np.asarray(new[name]), np.asarray(masks[name])
            np.testing.assert_array_equal(kept.sum(axis=0), before.sum(axis=0))
            np.testing.assert_array_equal(np.asarray(better[name])[~kept], 0)
        if isinstance(structure, jp.NM):
            np.testing.assert_array_equal(np.asarray(new["a"]).reshape(2, 4, 8).sum(axis=1), 2)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"sparsity": 50}, ValueError, "`sparsity`"),
        ({"structure": jp.NM(2, 3)}, ValueError, "'w'"),
        ({"structure": jp.Channels()}, TypeError, "Channels"),
        ({"structure": jp.Block((2, 2, 2))}, ValueError, "inputs, outputs"),
        ({"structure": jp.Block((3, 2)), "method": jp.SparseGPT(block=4)}, ValueError, "multiple of 3"),
        ({"structure": jp.Block((2, 2)), "refine": (jp.Swaps(),)}, TypeError, "Swaps"),
    ],
)
def test_mistakes_are_named(change, kind, message):
    given = {"sparsity": 0.5} | change
    with pytest.raises(kind, match=message):
        jp.reconstruct(dense, {"w": draw(0, 8, 4)}, [draw(1, 5, 8)], **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jp.SparseGPT(block=0), "block"),
        (lambda: jp.SparseGPT(damping=-1.0), "damping"),
        (lambda: jp.ADMM(rounds=3), "ramp"),
        (lambda: jp.ADMM(rho=0.0), "rho"),
        (lambda: jp.MaskOnly("wand"), "'wand'"),
        (lambda: jp.LeastSquares(0), "steps"),
        (lambda: jp.Swaps(0), "steps"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
