"""Allocations: hand numbers, exact totals, FLOPs from the jaxpr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune as jp
from jaxprune import matmul_conv

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)},
    "dense": {"kernel": jnp.ones((64, 10)), "bias": jnp.ones(10)},
    "none": jnp.ones((0, 4)),
    "one": jnp.ones((1, 1)),
}
SIZES = {"conv": 288, "dense": 640, "none": 0, "one": 1}


def spiky(seed=0):
    """Heavy tails, drawn in NumPy: JAX would compile for seconds whenever tests are collected."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: jnp.asarray(abs(rng.standard_t(2.0, w.shape)), jnp.float32), PARAMS)


SCORES = spiky()
ALLOCATIONS = {
    "uniform": lambda s: jp.allocate.uniform(PARAMS, s),
    "erk": lambda s: jp.allocate.erk(PARAMS, s),
    "owl": lambda s: jp.allocate.owl(SCORES, s),
    "from_scores": lambda s: jp.allocate.from_scores(SCORES, s),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.999])
def test_total_is_exact_and_make_masks_takes_it(name, sparsity):
    shares = ALLOCATIONS[name](sparsity)
    assert jax.tree.structure(shares) == jax.tree.structure(PARAMS)
    assert shares["conv"]["bias"] == shares["dense"]["bias"] == shares["none"] == 0
    masks = jp.make_masks(spiky(), shares)
    kept = sum(int(m.sum()) for m in jax.tree.leaves(masks) if not isinstance(m, bool))
    assert 929 - kept == round(sparsity * 929)


def test_uniform_differs_by_less_than_a_weight():
    shares = jp.allocate.uniform(PARAMS, 0.37)
    for path, n in (("conv", 288), ("dense", 640)):
        assert abs(shares[path]["kernel"] * n - 0.37 * n) < 1
    shapes = jax.eval_shape(lambda: PARAMS)
    assert jp.allocate.uniform(shapes, 0.37) == shares


def test_erk_hand_numbers():
    # (3+3+4+8)/288 = 1/16 and (64+10)/640 = 74/640; 10 % of 928 are 93 to keep: eps = 93/(18+74).
    params = {k: PARAMS[k]["kernel"] for k in ("conv", "dense")}
    shares = jp.allocate.erk(params, 0.9)
    kept = {k: (1 - s) * SIZES[k] for k, s in shares.items()}
    assert kept["conv"] == pytest.approx(93 * 18 / 92, abs=1) and kept["dense"] == pytest.approx(
        93 * 74 / 92, abs=1
    )
    assert sum(kept.values()) == pytest.approx(93)


def test_erk_makes_layers_dense_one_after_the_other():
    # Raw densities 1, 0.5, 0.2 (sizes 4, 16, 100). Of 120, 60 to keep: eps = 60/32 fills the first, then
    # (60-4)/28 = 2 fills the second, and the third keeps the other 40.
    params = {"a": jnp.ones((2, 2)), "c": jnp.ones((4, 4)), "d": jnp.ones((10, 10))}
    shares = jp.allocate.erk(params, 0.5)
    assert shares["a"] == shares["c"] == 0 and shares["d"] == 0.6


def test_erk_of_equal_layers_is_uniform():
    params = [jnp.ones((8, 8))] * 3
    assert jp.allocate.erk(params, 0.75) == jp.allocate.uniform(params, 0.75) == [0.75] * 3


@pytest.mark.slow
def test_owl_hand_numbers_for_layers_of_unequal_size():
    # Outliers: 0 of 100 and 2 of 200 (100 against a mean of 1.99). Densities c and c + 0.2; 150 are kept:
    # 100 c + 200 (c + 0.2) = 150, c = 110/300.
    scores = {"flat": jnp.ones((10, 10)), "spiky": jnp.ones((20, 10)).at[0, :2].set(100)}
    shares = jp.allocate.owl(scores, 0.5, lam=0.1)
    assert shares["flat"] * 100 == pytest.approx(100 - 110 / 3, abs=1)
    assert shares["spiky"] * 200 == pytest.approx(200 - 220 / 3 - 40, abs=1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_owl_of_equal_outlier_shares_is_uniform(value):
    """The reference divides 0 by 0 here."""
    scores = [jnp.full((6, 6), value), jnp.full((12, 3), value)]
    assert jp.allocate.owl(scores, 0.5) == [0.5, 0.5]


def test_owl_stays_within_0_and_1_and_in_budget():
    scores = {"flat": jnp.ones((10, 10)), "spiky": jnp.ones((10, 10)).at[0, 0].set(100)}
    shares = jp.allocate.owl(scores, 0.95, lam=0.3)
    assert shares["flat"] * 100 == pytest.approx(100, abs=0.5) and shares["spiky"] == pytest.approx(0.9)


def test_owl_layers_of_several_leaves():
    scores = {f"block{b}": {n: jnp.ones((10, 10)) for n in "qk"} for b in range(2)}
    scores["block1"]["q"] = scores["block1"]["q"].at[0, 0].set(500)
    shares = jp.allocate.owl(scores, 0.5, layer=lambda path: path.split("/")[0])
    assert shares == {"block0": {"q": 0.58, "k": 0.58}, "block1": {"q": 0.42, "k": 0.42}}


# One threshold


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize(
    "structure", [jp.Unstructured(), jp.Block((3, 4)), jp.Channels(), jp.Layers()], ids=repr
)
def test_from_scores_gives_what_global_masks_take_of_each_leaf(structure, sparsity):
    scores = {**spiky(3), "ties": jnp.ones((6, 10))}  # blocks of 3 x 4 stick out of most of them
    del scores["none"]
    shares = jp.allocate.from_scores(scores, sparsity, structure=structure)
    everywhere = jp.make_masks(scores, sparsity, structure=structure)
    alone = jp.make_masks(scores, shares, structure=structure)
    jax.tree.map(np.testing.assert_array_equal, alone, everywhere)


@pytest.mark.slow
def test_from_scores_keeps_the_minimum_and_knows_no_pattern():
    scores = [jnp.full((4, 5), 1.0), jnp.full((4, 5), 2.0)]
    assert jp.allocate.from_scores(scores, 0.5)[0] == pytest.approx(1, abs=0.05)
    assert jp.allocate.from_scores(scores, 0.5, minimum=0.2) == [0.8, 0.2]
    with pytest.raises(TypeError, match=r"NM.* prunes every leaf alike"):
        jp.allocate.from_scores(scores, 0.5, structure=jp.NM(2, 4))


# FLOPs


def brute_force_flops(scores, cost, target):
    order = sorted(
        (s * len(v) / cost[k], k) for k, v in scores.items() for s in v
    )  # score over the price of one weight
    counts = dict.fromkeys(scores, 0)
    for _, k in order:
        if sum(c * cost[n] / len(scores[n]) for n, c in counts.items()) >= target - 1e-6:
            break
        counts[k] += 1
    return counts


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.77, 0.99])
def test_flops_against_taking_one_weight_at_a_time(sparsity):
    rng = np.random.default_rng(0)
    scores = {"a": rng.random(40), "c": rng.random(24)}
    cost = {"a": 4000, "c": 720}
    tree = {k: jnp.asarray(v, jnp.float32).reshape(-1, 4) for k, v in scores.items()}
    shares = jp.allocate.flops(tree, sparsity, cost)
    got = {k: round(s * scores[k].size) for k, s in shares.items()}
    assert got == brute_force_flops(scores, cost, sparsity * 4720)


def test_flops_of_equal_scores_meet_the_budget():
    scores = {"a": jnp.ones((2, 5)), "c": jnp.ones((4, 5))}
    shares = jp.allocate.flops(scores, 0.5, {"a": 100, "c": 200})
    assert 10 * round(10 * shares["a"]) + 10 * round(20 * shares["c"]) == 150
    assert jp.allocate.flops(scores, 0.5, {"a": 0, "c": 200}) == {"a": 0, "c": 0.5}


class Net(nn.Module):
    conv: object = None

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3), conv_general_dilated=self.conv, use_bias=False)(x))
        x = nn.Conv(5, (3, 3), feature_group_count=5, use_bias=False, name="depthwise")(x)
        return nn.Dense(7)(nn.LayerNorm()(x.mean((1, 2))))


@pytest.mark.parametrize("conv", [None, matmul_conv])
def test_flops_of_convolutions_and_dense_layers(conv):
    net, x = Net(conv), jnp.ones((2, 6, 6, 4))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), x))["params"]
    flops = jp.allocate.weight_flops(lambda p, x: net.apply({"params": p}, x), params, x)
    assert flops["Conv_0"]["kernel"] == 2 * (2 * 6 * 6 * 5) * 3 * 3 * 4
    assert flops["depthwise"]["kernel"] == 2 * (2 * 6 * 6 * 5) * 3 * 3
    assert flops["Dense_0"] == {"kernel": 2 * 2 * 5 * 7, "bias": 0}
    assert flops["LayerNorm_0"] == {"scale": 0, "bias": 0}


def test_flops_through_loops_conditionals_casts_and_fused_weights():
    def fn(params, x):
        x, _ = jax.lax.scan(lambda h, w: (jax.checkpoint(jnp.tanh)(h @ w), None), x, params["stack"])
        x = jax.lax.cond(x.sum() > 0, lambda h: h @ params["a"].T.astype(h.dtype), lambda h: h, x)
        fused = x @ jnp.concatenate([params["q"], params["k"]], axis=1)
        q, k = jnp.split(fused, [2], axis=1)
        return (q @ k[:, :2].T) @ params["experts"][jnp.int32(x[0, 0])]

    shapes = {"stack": (3, 4, 4), "a": (4, 4), "q": (4, 2), "k": (4, 6), "experts": (2, 5, 5)}
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    flops = jp.allocate.weight_flops(fn, params, jnp.ones((5, 4)))
    assert flops == {
        "stack": 3 * 2 * 5 * 4 * 4, "a": 2 * 5 * 4 * 4, "q": 2 * 5 * 4 * 2, "k": 2 * 5 * 4 * 6,
        "experts": 2 * 5 * 5 * 5,
    }  # fmt: skip


# Bad input


def test_bad_input_is_named():
    for allocate in ALLOCATIONS.values():
        with pytest.raises(ValueError, match=r"It is a fraction: pass 0\.9"):
            allocate(90)
        with pytest.raises(ValueError, match="`sparsity` must be a known number for an allocation"):
            jax.jit(allocate)(0.5)
    with pytest.raises(ValueError, match="`M` must be at least 0, got -1"):
        jp.allocate.owl(spiky(), 0.5, M=-1)
    with pytest.raises(ValueError, match="`lam` must be at least 0, got nan"):
        jp.allocate.owl(spiky(), 0.5, lam=float("nan"))
    with pytest.raises(ValueError, match="call `owl` outside of jit"):
        jax.jit(lambda s: jp.allocate.owl(s, 0.5)["one"])(spiky())
    with pytest.raises(ValueError, match="call `from_scores` outside of jit"):
        jax.jit(lambda s: jp.allocate.from_scores(s, 0.5)["one"])(spiky())
    with pytest.raises(ValueError, match="call `flops` outside of jit"):
        jax.jit(lambda s: jp.allocate.flops(s, 0.5, s)["one"])(spiky())
    with pytest.raises(ValueError, match="finite and not negative, got others at 'w'"):
        jp.allocate.flops({"w": -jnp.ones((2, 2))}, 0.5, {"w": 1})
    with pytest.raises(ValueError, match="`cost` is 0 for every leaf"):
        jp.allocate.flops({"w": jnp.ones((2, 2))}, 0.5, {"w": 0})
    with pytest.raises(ValueError, match="`cost` must have the tree structure"):
        jp.allocate.flops({"w": jnp.ones((2, 2))}, 0.5, {"v": 0})
    with pytest.raises(ValueError, match="nothing to prune"):
        jp.allocate.uniform({"bias": jnp.ones(3)}, 0.5)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_that_the_input_picks_from_an_embedding_are_activations(tied):
    params = {
        "embed": jnp.ones((10, 4)),
        "up": jnp.ones((4, 8)),
        "down": jnp.ones((8, 4)),
        "out": jnp.ones((4, 10)),
    }

    def fn(params, tokens):
        hidden = params["embed"][tokens] * 2
        hidden = jax.nn.relu(hidden @ params["up"]) @ params["down"]
        return hidden @ (params["embed"].T if tied else params["out"])

    flops = jp.allocate.weight_flops(fn, params, jnp.zeros((2, 3), jnp.int32))
    of_output = 2 * 6 * 4 * 10
    assert flops == {
        "embed": of_output if tied else 0,
        "up": 2 * 6 * 4 * 8,
        "down": 2 * 6 * 8 * 4,
        "out": 0 if tied else of_output,
    }
