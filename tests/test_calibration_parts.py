"""Weights that are used in parts, and weights that a pattern does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from one_weight import draw

import jaxprune as jp

# Parts of a weight


def two_thirds(p, x):
    return x @ p["w"][:, :4]


def overlapping(p, x):
    return (x @ p["w"][:, :4]).sum() + (x @ p["w"][:, 2:]).sum()


@pytest.mark.parametrize(("fn", "message"), [(two_thirds, "32 of the 48"), (overlapping, "overlap in part")])
def test_a_weight_that_can_not_be_pruned_as_a_whole_is_an_error(fn, message):
    with pytest.raises(ValueError, match=rf"{message}.*'w'|'w'.*{message}"):
        jp.reconstruct(fn, {"w": draw(0, 8, 6)}, [draw(1, 20, 8)])


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: (x @ p["w"][:, :4], jnp.tanh(x) @ p["w"][:, 4:]),
        lambda p, x: (x @ p["w"][::2].T, x @ p["w"][1::2].T),
        lambda p, x: (jnp.tanh(x) @ p["w"][:, :3], x @ p["w"]),
        lambda p, x: (x @ p["w"], jnp.tanh(x) @ p["w"].T),
        lambda p, x: (x @ p["w"], jnp.tanh(x) @ p["w"], x @ p["w"][:, 2:5]),
    ],
    ids=["two parts", "every other row", "a slice and the whole", "transposed", "twice and a slice"],
)
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_slices_that_hold_all_lose_the_asked_share_of_the_whole(fn, share):
    params, x = {"w": draw(0, 8, 8)}, draw(1, 30, 8)
    new, masks = jp.reconstruct(fn, params, [x], share)
    assert np.sum(~np.asarray(masks["w"])) == np.sum(np.asarray(new["w"]) == 0) == round(share * 64)


# N:M


@pytest.mark.slow
@pytest.mark.parametrize("method", [jp.MaskOnly(), jp.SparseGPT(), jp.ADMM()], ids=lambda m: type(m).__name__)
def test_a_pattern_takes_its_own_sparsity_only(method):
    params, batches = {"a": draw(0, 8, 8), "b": draw(1, 8, 4)}, [draw(2, 30, 8)]
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    for wrong in (0.9, 0.25, jnp.float32(0.9), {"a": 0.5, "b": 0.25}):
        with pytest.raises(ValueError, match=r"`sparsity` must be 0.5 for NM\(2, 4\)"):
            jp.reconstruct(fn, params, batches, wrong, jp.NM(2, 4), method)
    for structure, share in ((jp.NM(1, 4), 0.75), (jp.NM(2, 4), 0.5)):  # by default the pattern's own
        assert jp.sparsity(*jp.reconstruct(fn, params, batches, structure=structure, method=method)) == share
    new, masks = jp.reconstruct(fn, params, batches, {"a": 0.0, "b": 0.5}, jp.NM(2, 4), method)
    assert masks["a"] is True and np.sum(~np.asarray(masks["b"])) == 16
    np.testing.assert_array_equal(new["a"], params["a"])


def images(params, x):
    for name in ("rgb", "hidden"):
        x = jnp.tanh(
            lax.conv_general_dilated(
                x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
    return x


@pytest.mark.slow
def test_what_a_pattern_does_not_fit_stays_dense_and_is_named():
    params, batches = {"rgb": draw(0, 3, 3, 3, 8), "hidden": draw(1, 3, 3, 8, 4)}, [draw(2, 2, 5, 5, 3)]
    for method in (jp.SparseGPT(), jp.MaskOnly()):
        with pytest.warns(UserWarning, match=r"NM\(2, 4\): `m` does not divide .* remain dense: 'rgb'"):
            new, masks = jp.reconstruct(images, params, batches, structure=jp.NM(2, 4), method=method)
        assert masks["rgb"] is True
        np.testing.assert_array_equal(new["rgb"], params["rgb"])
        np.testing.assert_array_equal(np.asarray(masks["hidden"]).reshape(3, 3, 2, 4, 4).sum(3), 2)
    both = {"rgb": True, "hidden": True}
    for named in ({"where": both}, {"where": lambda p: both}, {"sparsity": {"rgb": 0.5, "hidden": 0.5}}):
        with pytest.raises(ValueError, match="'rgb' with 3"):
            jp.reconstruct(images, params, batches, structure=jp.NM(2, 4), **named)
    wide = {"rgb": draw(3, 4, 4, 3, 8)}  # 48 inputs, but groups of four would mix the channels of neighbours
    with pytest.raises(ValueError, match="'rgb' with 3"):
        jp.reconstruct(images, params | wide, batches, structure=jp.NM(2, 4), where=both)
    alone = lambda p, x: images(p | {"hidden": params["hidden"]}, x)  # noqa: E731
    with pytest.raises(ValueError, match="'rgb' with 3"):
        jp.reconstruct(alone, {"rgb": params["rgb"]}, batches, structure=jp.NM(2, 4))
    new, masks = jp.reconstruct(images, params, batches, {"rgb": 0.0, "hidden": 0.5}, jp.NM(2, 4))
    assert masks["rgb"] is True and jp.sparsity(new, masks) == 0.5


@pytest.mark.slow
def test_swap_refine_leaves_dense_what_a_pattern_does_not_fit():
    params = {"up": draw(0, 6, 8), "down": draw(1, 8, 4)}

    def fn(p, x):
        return jax.nn.relu(x @ p["up"]) @ p["down"]

    batches = [draw(2, 32, 6)]
    masks = {
        "up": jnp.ones((6, 8), bool),
        "down": jp.make_masks({"down": jnp.abs(params["down"])}, 0.5, structure=jp.NM(2, 4))["down"],
    }
    pruned = jp.apply_masks(params, masks)
    new, better = jp.swap_refine(fn, params, pruned, masks, batches, jp.NM(2, 4))
    assert bool(better["up"].all()) and jnp.array_equal(new["up"], params["up"])
    assert int(better["down"].sum()) == 16
