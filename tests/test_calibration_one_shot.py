"""`one_shot`: what it picks, what it hands to `reconstruct`, and that better qualities are better."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.calibration.engine.splitting import split_batches

WIDTH, HIDDEN = 12, 24


def residual_model(seed=0):
    """Two residual branches of different weight, and rows to calibrate and to test."""
    keys = jax.random.split(jax.random.key(seed), 6)
    params = {
        f"block{i}": {
            "up": jax.random.normal(keys[2 * i], (WIDTH, HIDDEN)) / 4,
            "down": jax.random.normal(keys[2 * i + 1], (HIDDEN, WIDTH)) * (0.1 + i),
        }
        for i in range(2)
    }
    rows = jax.random.normal(keys[4], (640, WIDTH)) * jnp.linspace(0.2, 2, WIDTH)
    return params, rows[:128], rows[128:]


def branches(params, x):
    for block in params.values():
        x = x + jnp.tanh(x @ block["up"]) @ block["down"]
    return x


def loss(params, dense, x):
    return loss_of(branches, params, dense, x)


def loss_of(fn, params, dense, x):
    return float(jnp.mean(jnp.square(fn(params, x) - fn(dense, x))))


@pytest.mark.parametrize("seed", range(3))
def test_better_qualities_keep_more_of_the_outputs_at_the_exact_sparsity(seed):
    params, rows, others = residual_model(seed)
    found = []
    for quality in ("fast", "good", "best"):
        pruned, masks = jp.one_shot(branches, params, [rows], 0.6, quality)
        kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
        total = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert total - kept == round(0.6 * total) or quality == "fast"
        assert all(
            not np.any(np.asarray(w)[~np.asarray(m)])
            for w, m in zip(jax.tree.leaves(pruned), jax.tree.leaves(masks), strict=True)
        )
        found.append(loss(pruned, params, others))
    assert found[2] < found[1] < found[0]


def test_it_is_reconstruct_with_what_it_says_it_picks():
    params, rows, _ = residual_model()
    said = []
    pruned, masks = jp.one_shot(
        branches, params, [rows], 0.5, "best", structure=jp.NM(2, 4), on_choice=said.append
    )
    (choice,) = said
    assert choice.gradients == 0  # a pattern leaves nothing to share out
    same, _ = jp.reconstruct(
        branches,
        params,
        split_batches(branches, params, [(rows,)], choice.batches),
        structure=jp.NM(2, 4),
        method=choice.method,
        refine=choice.refine,
        dense_targets=choice.dense_targets,
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), pruned, same))
    assert all(bool((m.reshape(-1, 4, m.shape[1]).sum(1) == 2).all()) for m in jax.tree.leaves(masks))


def test_sparsities_given_by_hand_are_kept():
    params, rows, _ = residual_model()
    shares = {"block0": {"up": 0.25, "down": 0.5}, "block1": {"up": 0.0, "down": 0.75}}
    _, masks = jp.one_shot(branches, params, [rows], shares, "good")
    assert jax.tree.map(lambda m: round(1 - float(jnp.mean(m)), 6), masks) == shares


def test_weights_that_multiply_no_activations_stay_dense_and_get_no_share():
    params, rows, _ = residual_model()
    params["table"] = {"kernel": jnp.ones((8, WIDTH))}

    def fn(p, x):
        blocks = {name: p[name] for name in ("block0", "block1")}
        return branches(blocks, x) + p["table"]["kernel"][jnp.zeros(len(x), int)]

    with pytest.warns(UserWarning, match="multiply no activations"):
        _, masks = jp.one_shot(fn, params, [rows], 0.5, "good")
    assert masks["table"]["kernel"] is True or bool(jnp.all(masks["table"]["kernel"]))
    assert (
        jp.sparsity({n: params[n] for n in ("block0", "block1")}, {n: masks[n] for n in ("block0", "block1")})
        == 0.5
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.98])
def test_extreme_sparsities(sparsity):
    params, rows, _ = residual_model()
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    pruned, masks = jp.one_shot(branches, params, [rows], sparsity, "good")
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(int((~m).sum()) for m in jax.tree.leaves(masks)) == round(sparsity * total)
    assert {leaf.dtype for leaf in jax.tree.leaves(pruned)} == {jnp.dtype(jnp.bfloat16)}


def test_wrong_arguments_are_named():
    params, rows, _ = residual_model()
    with pytest.raises(ValueError, match="`quality` must be one of 'fast', 'good', 'best', got 'perfect'"):
        jp.one_shot(branches, params, [rows], 0.5, "perfect")
    with pytest.raises(ValueError, match="`sparsity`"):
        jp.one_shot(branches, params, [rows], 1.5, "good")
    with pytest.raises(ValueError, match="`sparsity` must be a known number"):
        jax.jit(lambda share: jp.one_shot(branches, params, [rows], share, "good"))(0.5)
    with pytest.raises(ValueError, match="`loss_fn` must return one number, got shape"):
        jp.one_shot(branches, params, [rows], 0.5, "good", loss_fn=branches)
    with pytest.raises(dataclasses.FrozenInstanceError):
        jp.OneShotChoice(jp.ADMM()).gradients = 3  # type: ignore[misc]


def test_batches_are_cut_where_the_function_takes_parts():
    x, mask = np.arange(24.0).reshape(8, 3), np.ones((8,))
    parts = split_batches(lambda p, x, m: x * m[:, None], {}, [(x, mask)], 4)
    assert [part[0].shape for part in parts] == [(2, 3)] * 4
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), x)


@pytest.mark.parametrize(
    ("fn", "batch"),
    [
        (lambda p, x: x.reshape(8, 3), (np.ones((8, 3)),)),  # the size of the batch is written down
        (lambda p, x, y: x @ y, (np.ones((8, 3)), np.ones((3, 2)))),  # not every input has samples
        (lambda p, x, scale: x * scale, (np.ones((8, 3)), 2.0)),
        (lambda p, x: x @ x.T, (np.ones((8, 3)),)),  # samples meet
    ],
)
def test_batches_stay_whole_where_parts_are_something_else(fn, batch):
    assert split_batches(fn, {}, [batch], 4) == [batch]


def test_with_a_loss_the_scores_are_fisher_scores():
    params, rows, _ = residual_model()
    batches, said = list(rows[:16, None]), []  # samples one by one

    def first_output(params, x):
        return jnp.mean(branches(params, x)[:, 0] ** 2)

    _, masks = jp.one_shot(
        branches, params, batches, 0.5, "good", loss_fn=first_output, on_choice=said.append
    )
    every = len(batches) // said[0].gradients
    fisher = jp.scores.fisher(first_output, params, rows[:16:every])
    shares = jp.allocate.from_scores(fisher, 0.5, minimum=0.05)
    found = jax.tree.map(lambda m: 1 - float(jnp.mean(m)), masks)
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(shares), atol=1e-6)


def test_a_run_that_was_stopped_goes_on(tmp_path):
    params, rows, _ = residual_model()
    whole, _ = jp.one_shot(branches, params, [rows], 0.5, "best")
    seen = []

    def stop(row):
        seen.append(row)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jp.one_shot(branches, params, [rows], 0.5, "best", checkpoint=tmp_path / "run", on_layer=stop)
    rest, _ = jp.one_shot(
        branches, params, [rows], 0.5, "best", checkpoint=tmp_path / "run", on_layer=seen.append
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), whole, rest))


def test_a_convolutional_network_keeps_the_shares_of_reconstruct():
    key = jax.random.key(0)
    params = {
        "conv": jax.random.normal(key, (3, 3, 1, 4)),
        "kernel": jax.random.normal(key, (36, 5)),
    }

    def fn(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["conv"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(x).reshape(len(x), -1) @ params["kernel"]

    images, said = jax.random.normal(key, (32, 8, 8, 1)), []
    new, masks = jp.one_shot(fn, params, [images], 0.5, "fast", on_choice=said.append)
    same, _ = jp.reconstruct(fn, params, [images], 0.5, method=jp.ADMM())
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), new, same))
    assert not said[0].gradients and "shares as of" in str(said[0])
    assert sum(int((~m).sum()) for m in jax.tree.leaves(masks)) == 108


def test_an_nnx_model_and_leaves_without_entries():
    model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    pruned, masks = jp.one_shot(
        lambda state, x: nnx.merge(graph, state)(x), state, [jnp.ones((8, 6)) * jnp.arange(1, 7)], 0.5, "good"
    )
    assert jp.sparsity(pruned, masks) == 0.5
    params = {"w": jnp.ones((4, 2)), "empty": jnp.zeros((0, 3)), "step": jnp.array(3)}
    pruned, _ = jp.one_shot(lambda p, x: x @ p["w"], params, [jnp.ones((8, 4))], 0.5, "good")
    assert pruned["empty"].shape == (0, 3) and pruned["step"] == 3


@pytest.mark.slow
def test_sharded_parameters_stay_where_they_are():
    """64 small batches: many programs with collectives, which must not wait for each other."""
    params, rows, _ = residual_model()
    params, rows = (
        jax.tree.map(lambda w: w[:8] if w.shape[0] == WIDTH else w[:, :8], params["block0"]),
        rows[:64, :8],
    )

    def fn(p, x):
        return x + jnp.tanh(x @ p["up"]) @ p["down"]

    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    spread = jax.tree.map(lambda w: jax.device_put(w, NamedSharding(mesh, P(None, "d"))), params)
    here, masks = jp.one_shot(fn, params, [rows], 0.5, "good")
    there, same = jp.one_shot(fn, spread, [rows], 0.5, "good")
    assert there["up"].sharding.spec == P(None, "d")
    agree = [np.mean(np.asarray(masks[name]) == np.asarray(same[name])) for name in masks]
    assert min(agree) > 0.97  # sums over devices are rounded in another order
    assert abs(loss_of(fn, there, params, rows) / loss_of(fn, here, params, rows) - 1) < 0.1
