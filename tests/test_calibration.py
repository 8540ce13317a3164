"""Statistics of what weights multiply: against the activations computed by hand, in any program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp

EXACT = {"rtol": 2e-5, "atol": 2e-5}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def gram(*rows):
    x = np.concatenate([np.asarray(r, np.float64).reshape(-1, np.shape(r)[-1]) for r in rows])
    return x.T @ x


def second(stats, path, part=0):
    return np.asarray(stats[path].moments[part].second[0])


def test_hand_worked_second_moment_norms_and_means():
    x = jnp.array([[3.0, 1.0], [4.0, 1.0]])
    stats = jp.calibrate(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, [x[:1], x[1:]], moments="full")
    np.testing.assert_allclose(second(stats, "w"), [[25, 7], [7, 2]])
    np.testing.assert_allclose(stats["w"].input_norms, [[5] * 3, [2**0.5] * 3], rtol=1e-6)
    np.testing.assert_allclose(stats["w"].input_means, [[3.5] * 3, [1] * 3])
    assert float(stats["w"].moments[0].total) == 2
    ((mean, square),) = stats["w"].output_moments(jnp.ones((2, 3)))
    np.testing.assert_allclose(mean, [[4.5] * 3])
    np.testing.assert_allclose(square, [[(16 + 25) / 2] * 3], rtol=1e-6)


@pytest.mark.slow
def test_diagonal_is_that_of_the_full_moment():
    params, batches = {"w": draw(0, 5, 3)}, [draw(1, 7, 5), draw(2, 7, 5)]
    diagonal = jp.calibrate(lambda p, x: x @ p["w"], params, batches)["w"]
    full = jp.calibrate(lambda p, x: x @ p["w"], params, batches, moments="full")["w"]
    np.testing.assert_allclose(diagonal.moments[0].second, full.moments[0].squares, **EXACT)
    with pytest.raises(ValueError, match="full"):
        diagonal.output_moments(params["w"])


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [255, 256, 450, 517, 1030])  # one block of X^T X, or several
@pytest.mark.parametrize("weighted", [False, True])
def test_wide_inputs_are_symmetric_and_exact(inputs, weighted):
    x = draw(0, 40, inputs)
    each = np.linspace(0, 3, 40, dtype=np.float32) if weighted else np.ones(40, np.float32)
    stats = jp.calibrate(
        lambda p, x: x @ p["w"],
        {"w": jnp.ones((inputs, 2))},
        [x],
        moments="full",
        row_weights=(lambda x: jnp.asarray(each)) if weighted else None,
    )
    expected = gram(np.asarray(x, np.float64) * np.sqrt(each.astype(np.float64))[:, None])
    np.testing.assert_allclose(second(stats, "w"), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(second(stats, "w"), second(stats, "w").T)


def layouts(w):
    """The same product by a weight stored in other ways, with its stored value."""
    return {
        "transposed": (w.T, lambda v, x: x @ v.T),
        "weight first": (w, lambda v, x: lax.dot_general(v, x, (((0,), (1,)), ((), ()))).T),
        "split outputs": (w.reshape(6, 2, 2), lambda v, x: jnp.einsum("ni,ihd->nhd", x, v).reshape(-1, 4)),
        "split inputs": (w.reshape(2, 3, 4), lambda v, x: jnp.einsum("nab,abo->no", x.reshape(-1, 2, 3), v)),
        "merged in the function": (w.reshape(2, 3, 4), lambda v, x: x @ v.reshape(6, 4)),
        "sliced": (jnp.stack([w * 0, w]), lambda v, x: x @ v[1]),
        "dynamic slice": (jnp.stack([w * 0, w]), lambda v, x: x @ lax.dynamic_index_in_dim(v, 1, 0, False)),
        "fused": (jnp.concatenate([w, w], 1), lambda v, x: x @ jnp.split(v, 2, 1)[1]),
        "cast": (w, lambda v, x: x @ v.astype(jnp.float32)[None][0]),
        "in jit": (w, lambda v, x: jax.jit(lambda a, b: a @ b)(x, v)),
        "in remat": (w, lambda v, x: jax.checkpoint(lambda a, b: jnp.sin(a @ b))(x, v)),
        "in custom_jvp": (w, lambda v, x: custom(x, v)),
    }


@jax.custom_jvp
def custom(x, w):
    return x @ w


custom.defjvp(lambda primals, tangents: (custom(*primals), custom(tangents[0], primals[1])))


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("name", layouts(np.zeros((6, 4))))
def test_statistics_reach_the_weight_however_it_is_stored(name):
    x, w = draw(0, 9, 6), draw(1, 6, 4)
    stored, product = layouts(w)[name]
    stats = jp.calibrate(lambda p, x: product(p["w"], x), {"w": stored}, [x], moments="full")["w"]
    np.testing.assert_allclose(stats.moments[0].second[0], gram(x), **EXACT)
    (matrix,) = stats.matrices
    np.testing.assert_array_equal(matrix.of(np.asarray(stored))[0][:, :4], w)


def test_scanned_layers_have_statistics_each():
    w, x = draw(0, 3, 5, 5), draw(1, 8, 5)

    def fn(params, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), jnp.sum(h)), x, params["w"])

    stats = jp.calibrate(fn, {"w": w}, [x[:4], x[4:]], moments="full")
    h = np.asarray(x, np.float64)
    for layer in range(3):
        np.testing.assert_allclose(second(stats, "w", layer), gram(h), **EXACT)
        h = np.tanh(h @ np.asarray(w[layer], np.float64))
    assert stats["w"].input_norms.shape == (3, 5, 5)


def test_a_loop_over_a_stack_by_its_counter_is_followed():
    w, x = draw(0, 3, 5, 5), draw(1, 8, 5)

    def fn(params, x):
        def body(carry, _):
            i, h = carry
            return (i + 1, jnp.tanh(h @ params["w"][i])), None

        return lax.scan(body, (0, x), length=3)[0][1]

    stats = jp.calibrate(fn, {"w": w}, [x], moments="full")
    np.testing.assert_allclose(
        second(stats, "w", 1), gram(np.tanh(np.asarray(x, np.float64) @ np.asarray(w[0]))), **EXACT
    )


def test_a_weight_used_twice_adds_up():
    w, x = draw(0, 5, 5), draw(1, 8, 5)
    stats = jp.calibrate(lambda p, x: jnp.sin(x @ p["w"]) @ p["w"], {"w": w}, [x], moments="full")
    h = np.sin(np.asarray(x, np.float64) @ np.asarray(w, np.float64))
    np.testing.assert_allclose(second(stats, "w"), gram(x, h), **EXACT)
    assert float(stats["w"].moments[0].total) == 16


def test_batched_weights_are_groups():
    w, x = draw(0, 3, 5, 2), draw(1, 8, 3, 5)
    fn = jax.vmap(lambda p, x: x @ p, in_axes=(0, 1), out_axes=1)
    stats = jp.calibrate(lambda p, x: fn(p["w"], x), {"w": w}, [x], moments="full")["w"]
    assert stats.matrices[0].shape == (3, 5, 2)
    for g in range(3):
        np.testing.assert_allclose(stats.moments[0].second[g], gram(x[:, g]), **EXACT)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolution_inputs_are_patches(groups, padding):
    """X^T X is right exactly when it gives the output's second moment: checked against the output."""
    x, w = draw(0, 2, 7, 6, 4), draw(1, 3, 2, 4 // groups, 6)

    def fn(params, x):
        return lax.conv_general_dilated(
            x,
            params["w"],
            (2, 1),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    params = {"w": w}
    stats = jp.calibrate(fn, params, [x], moments="full")["w"]
    out = np.asarray(fn(params, x), np.float64).reshape(-1, groups, 6 // groups)
    ((mean, square),) = stats.output_moments(w)
    np.testing.assert_allclose(mean, out.mean(0), **EXACT)
    np.testing.assert_allclose(square, (out**2).mean(0), rtol=1e-4)
    assert float(stats.moments[0].total) == out.shape[0]


def test_padding_rows_do_not_count_whatever_they_hold():
    x, lengths = draw(0, 3, 4, 5), jnp.array([4, 2, 1])
    padding = jnp.arange(4) < lengths[:, None]
    x = jnp.where(padding[..., None], x, jnp.nan)

    def fn(params, x, padding):
        return jnp.sum(jnp.where(padding[..., None], x @ params["w"], 0), 1) @ params["pooled"]

    params = {"w": draw(1, 5, 6), "pooled": draw(2, 6, 2)}
    stats = jp.calibrate(fn, params, [(x, padding)], moments="full", row_weights=lambda x, padding: padding)
    rows = np.asarray(x)[np.asarray(padding)]
    np.testing.assert_allclose(second(stats, "w"), gram(rows), **EXACT)
    assert float(stats["w"].moments[0].total) == 7
    assert float(stats["pooled"].moments[0].total) == 3  # has no positions: each row counts


def test_row_weights_count_as_repeated_rows():
    x = draw(0, 3, 5)
    once = lambda p, x: x @ p["w"]  # noqa: E731
    weighted = jp.calibrate(once, {"w": jnp.ones((5, 1))}, [x], row_weights=lambda x: jnp.array([2, 0, 1.0]))
    again = jp.calibrate(once, {"w": jnp.ones((5, 1))}, [x[jnp.array([0, 0, 2])]])
    np.testing.assert_allclose(weighted["w"].input_norms, again["w"].input_norms, rtol=1e-6)
    assert float(weighted["w"].moments[0].total) == 3


def test_bfloat16_models_have_float32_statistics():
    x = draw(0, 64, 5).astype(jnp.bfloat16)
    stats = jp.calibrate(lambda p, x: x @ p["w"], {"w": jnp.ones((5, 2), jnp.bfloat16)}, [x], moments="full")
    assert stats["w"].moments[0].second.dtype == jnp.float32
    np.testing.assert_allclose(second(stats, "w"), gram(x.astype(jnp.float32)), **EXACT)


def test_equal_layers_compile_one_segment():
    from jaxprune.jaxprs import stream

    params = [{"w": draw(i, 5, 5)} for i in range(6)]

    def fn(params, x):
        for layer in params:
            x = jax.nn.silu(x @ layer["w"]) + x
        return x

    before = stream._run_segment._cache_size()
    jp.calibrate(fn, params, [draw(9, 4, 5), draw(10, 4, 5)])
    assert stream._run_segment._cache_size() - before <= 2  # the first layer's and that of all others


def test_a_shared_activation_is_computed_once_for_all_its_weights():
    """Casts of one value, as Flax makes them for each layer, are one value: its X^T X is shared."""
    params = {"q": draw(0, 5, 3), "k": draw(1, 5, 3)}

    def fn(params, x):
        return [x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16) for w in params.values()]

    stats = jp.calibrate(fn, params, [draw(2, 4, 5)], moments="full")
    assert stats["q"].moments[0].second is stats["k"].moments[0].second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "at least one batch"),
        ({"batches": [jnp.ones((2, 4)), jnp.ones((3, 4))]}, "batch 1"),
        ({"moments": "some"}, "'some'"),
        ({"where": {"w": True, "unused": True}}, "'unused'"),
        ({"row_weights": lambda x: jnp.ones((9,))}, r"\(9,\)"),
    ],
)
def test_mistakes_are_named(change, message):
    params = {"w": jnp.ones((4, 2)), "unused": jnp.ones((3, 3))}
    given = {"batches": [jnp.ones((2, 4))], "where": {"w": True, "unused": False}} | change
    with pytest.raises(ValueError, match=message):
        jp.calibrate(lambda p, x: x @ p["w"], params, **given)


def test_tracers_are_refused():
    def traced(w):
        jp.calibrate(lambda p, x: x @ p["w"], {"w": w}, [jnp.ones((2, 4))])

    with pytest.raises(TypeError, match="outside `jit`"):
        jax.jit(traced)(jnp.ones((4, 2)))


# Scores


def test_wanda_prunes_every_output_alike_and_counts_exactly():
    params, x = {"w": draw(0, 8, 5)}, draw(1, 30, 8) * jnp.arange(1.0, 9)
    stats = jp.calibrate(lambda p, x: x @ p["w"], params, [x])
    masks = jp.make_masks(jp.scores.wanda(params, stats), 0.5, scope="local")
    plain = np.abs(params["w"]) * np.linalg.norm(np.asarray(x, np.float64), axis=0)[:, None]
    np.testing.assert_allclose(jp.scores.wanda(params, stats, per_output=False)["w"], plain, rtol=1e-5)
    for o in range(5):
        lowest = np.argsort(plain[:, o])[:4]
        np.testing.assert_array_equal(np.flatnonzero(~np.asarray(masks["w"])[:, o]), np.sort(lowest))


@pytest.mark.slow
def test_wanda_compares_per_output_in_torch_layout_too():
    w, x = draw(0, 8, 5), draw(1, 30, 8)
    params = {"w": w.T}
    stats = jp.calibrate(lambda p, x: x @ p["w"].T, params, [x])
    masks = jp.make_masks(jp.scores.wanda(params, stats), 0.25, scope="local")["w"]
    np.testing.assert_array_equal(np.sum(~np.asarray(masks), axis=1), [2] * 5)


def test_ria_by_its_formula():
    params, x = {"w": draw(0, 4, 3)}, draw(1, 9, 4)
    stats = jp.calibrate(lambda p, x: x @ p["w"], params, [x])
    w, norms = np.abs(np.asarray(params["w"], np.float64)), np.linalg.norm(np.asarray(x), axis=0)[:, None]
    expected = (w / w.sum(0, keepdims=True) + w / w.sum(1, keepdims=True)) * norms**0.5
    np.testing.assert_allclose(jp.scores.ria(params, stats)["w"], expected, rtol=1e-5)


def test_weights_without_statistics_are_refused_by_make_masks_unless_left_out():
    params = {"w": draw(0, 4, 3), "free": draw(1, 4, 3)}
    stats = jp.calibrate(lambda p, x: x @ p["w"], params, [draw(2, 5, 4)])
    scores = jp.scores.wanda(params, stats)
    with pytest.raises(ValueError, match="free"):
        jp.make_masks(scores, 0.5)
    masks = jp.make_masks(scores, 0.5, where={"w": True, "free": False})
    assert masks["free"] is True


def test_statistics_of_other_parameters_are_refused():
    stats = jp.calibrate(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 3))}, [jnp.ones((2, 4))])
    with pytest.raises(ValueError, match="'w'"):
        jp.scores.wanda({"v": jnp.ones((4, 3))}, stats)
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        jp.scores.ria({"w": jnp.ones((4, 2))}, stats)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_inputs_that_are_not_finite_are_an_error_that_names_the_first_weight_they_reach(bad):
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}

    def fn(params, x):
        return jnp.where(jnp.arange(3) == 1, bad, x @ params["a"]) @ params["b"]

    for prune in (jp.calibrate, jp.reconstruct):
        with pytest.raises(ValueError, match=r"finite inputs .* 'b'"):
            prune(fn, params, [draw(1, 4, 2)])
