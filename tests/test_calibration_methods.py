"""Each one-shot method against its definition: brute force in float64, and values worked by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_weight import correlated, draw, error, prune

import jaxprune as jp
from jaxprune.calibration.methods.mask_only import keep_highest_per_output


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_sparsegpt_blocks_change_nothing_but_the_choice():
    """With the mask given by 2:4, updates that wait for the end of a block are the same updates."""
    w, x = draw(0, 20, 7), correlated(1, 60, 20)
    whole = prune(w, x, 0.5, jp.NM(2, 4), jp.SparseGPT(block=128))
    lazy = prune(w, x, 0.5, jp.NM(2, 4), jp.SparseGPT(block=8))  # 20 is no multiple of 8
    np.testing.assert_array_equal(whole[1], lazy[1])
    np.testing.assert_allclose(whole[0], lazy[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_least_squares_is_the_solution_of_each_output():
    w, x = draw(0, 8, 5), correlated(1, 60, 8)
    got, mask = prune(w, x, 0.5, method=jp.MaskOnly("wanda"), refine=(jp.LeastSquares(20),))
    x64, w64 = np.asarray(x, np.float64), np.asarray(w, np.float64)
    for o in range(5):
        kept = mask[:, o]
        solution = np.linalg.lstsq(x64[:, kept], x64 @ w64[:, o], rcond=None)[0]
        np.testing.assert_allclose(got[kept, o], solution, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
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


@pytest.mark.slow
def test_swaps_with_dense_values_by_hand():
    """G = diag(1, 4), w = (3, 2): keeping 2 costs 9, keeping 3 costs 16. Magnitude keeps 3; the swap mends it."""
    w, x = jnp.array([[3.0], [2.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
    before, _ = prune(w, x, 0.5, method=jp.MaskOnly("magnitude"))
    after, mask = prune(w, x, 0.5, method=jp.MaskOnly("magnitude"), refine=(jp.Swaps(5, dense_values=True),))
    assert before.ravel().tolist() == [3, 0]
    assert after.ravel().tolist() == [0, 2] and mask.ravel().tolist() == [False, True]


@pytest.mark.parametrize("structure", [jp.Unstructured(), jp.NM(2, 4)], ids=str)
def test_masks_by_a_function_of_the_weights(structure):
    """`scores.magnitude` as a function gives what it gives by name; any other function as `make_masks` does."""
    w, x = draw(0, 8, 6), draw(1, 20, 8)
    by_name = prune(w, x, 0.5, structure, jp.MaskOnly("magnitude"))
    for score in (jp.scores.magnitude, jnp.square):
        jax.tree.map(np.testing.assert_array_equal, prune(w, x, 0.5, structure, jp.MaskOnly(score)), by_name)
    signed = lambda params: params  # noqa: E731  # of both signs: the most negative weights are pruned
    _, mask = prune(w, x, 0.5, structure, jp.MaskOnly(signed))
    want = jp.make_masks({"w": w}, 0.5, structure=structure, where={"w": True})["w"]
    np.testing.assert_array_equal(mask, want)


def test_masks_by_a_function_compare_the_weights_of_each_output_where_asked():
    w, x = draw(0, 8, 6), draw(1, 20, 8)
    _, mask = prune(w, x, 0.5, method=jp.MaskOnly(jp.scores.magnitude, per_output=True))
    assert mask.sum(0).tolist() == [4] * 6


def test_a_score_of_another_shape_is_an_error():
    message = (
        r"MaskOnly `score` must return an array of the shape of each weight matrix, \(8, 6\) here, got \(6,\)"
    )
    with pytest.raises(ValueError, match=message):
        prune(draw(0, 8, 6), draw(1, 20, 8), 0.5, method=jp.MaskOnly(lambda w: w.sum(0)))
    with pytest.raises(TypeError, match=r"`score` must take \(params\)"):
        prune(draw(0, 8, 6), draw(1, 20, 8), 0.5, method=jp.MaskOnly(lambda w, x, y: w))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_sparsegpt_prunes_a_padded_matrix_as_the_same_one_in_a_stack():
    """A single matrix is padded to one of few shapes; those that are mapped over are not."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 140)).astype(np.float32)
    x[:, 3] = 0  # an input about which nothing is known
    gram, w = jnp.asarray(x.T @ x), jnp.asarray(draw.normal(size=(140, 10)), jnp.float32)
    method, structure, count = jp.SparseGPT(), jp.Unstructured(), jnp.asarray(700)
    factor = method.factorize(gram)
    found, mask = method.solve(w, gram, factor, count, structure)
    stacked, masks = jax.vmap(lambda w: method.solve(w, gram, factor, count, structure))(w[None])
    assert int((~mask).sum()) == 700 and not mask[3].any()
    np.testing.assert_array_equal(mask, masks[0])
    np.testing.assert_allclose(found, stacked[0], rtol=1e-5, atol=1e-6)
