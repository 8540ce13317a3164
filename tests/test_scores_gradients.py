"""Scores from gradients: hand-worked values, then their definitions by brute force."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp


def mlp(params, x):
    return jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((mlp(params, x) - y) ** 2)


def params_of(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "bias": jax.random.normal(keys[2], (5,), dtype),
        "down": jax.random.normal(keys[1], (5, 2), dtype),
        "up": jax.random.normal(keys[0], (3, 5), dtype),
    }


def batch_of(samples, seed=0):
    x = jax.random.normal(jax.random.key(10 + seed), (samples, 3))
    return x, jnp.sin(x[:, :2] * 3)


BATCHES = (batch_of(6), batch_of(6, 1))
STRUCTURES = (jp.Unstructured(), jp.Channels(), jp.Channels(0), jp.Block((2, 3)), jp.Layers(), jp.NM(1, 2))


def close(got, want, rtol=2e-4, atol=1e-6):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == jnp.float32
        np.testing.assert_allclose(g, w, rtol=rtol, atol=atol)


def summed(values, structure):
    """Sum over each unit, at all of its weights: in float64, by naming the unit of every weight."""

    def one(x):
        x = np.asarray(x, np.float64)
        index = np.indices(x.shape)
        match structure:
            case jp.Channels(axis):
                names = index[axis]
            case jp.Layers():
                names = index[0] * 0
            case jp.Block((a, b)) if x.ndim == 2:
                names = index[0] // a * 100 + index[1] // b
            case _:
                return x
        return sum(np.where(names == n, x[names == n].sum(), 0) for n in np.unique(names))

    return jax.tree.map(one, values)


def gradient(batch, params=None):
    return jax.grad(loss_fn)(params_of() if params is None else params, batch)


def mean(trees):
    return jax.tree.map(lambda *xs: sum(np.asarray(x, np.float64) for x in xs) / len(xs), *trees)


def products(params, grads):
    return jax.tree.map(lambda w, g: np.asarray(w, np.float64) * g, params, grads)


# Hand-worked: loss = a*b*x with a = 2, b = -3, so dL/da = -3x, dL/db = 2x, H = [[0, x], [x, 0]].
PAIR = {"a": jnp.array(2.0), "b": jnp.array(-3.0)}


def bilinear(params, x):
    return jnp.mean(params["a"] * params["b"] * x)


def test_hand_worked_product_of_two_weights():
    x = jnp.array([1.0, 2.0, 3.0])  # mean 2: g = (-6, 4), H g = 2 * (4, -6) = (8, -12)
    assert jp.scores.snip(bilinear, PAIR, x) == {"a": 12, "b": 12}
    assert jp.scores.taylor(bilinear, PAIR, x) == {"a": 144, "b": 144}
    assert jp.scores.grasp(bilinear, PAIR, x) == {"a": 16, "b": 36}
    # Samples: g_a = -3, -6, -9 with mean square 42, times 4; g_b = 2, 4, 6 with mean square 56/3, times 9.
    fisher = jp.scores.fisher(bilinear, PAIR, x)
    assert float(fisher["a"]) == pytest.approx(168) and float(fisher["b"]) == pytest.approx(168)


def test_hand_worked_synflow():
    # 1 -> (1, 2) -> 3*1 + 4*2 = 11 flows through, of which 3 by the first path and 8 by the second.
    params = [jnp.array([[-1.0, 2.0]]), jnp.array([[3.0], [-4.0]])]
    scores = jp.scores.synflow(lambda p, x: jax.nn.relu(x @ p[0]) @ p[1], params, jnp.full((1, 1), -7.0))
    assert scores[0].tolist() == [[3, 8]] and scores[1].tolist() == [[3], [8]]


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
def test_units_against_sums_by_hand(structure):
    params = params_of()
    grads = mean([gradient(b) for b in BATCHES])
    total = summed(products(params, grads), structure)
    close(jp.scores.snip(loss_fn, params, *BATCHES, structure=structure), jax.tree.map(np.abs, total))
    each = [summed(products(params, gradient(b)), structure) for b in BATCHES]
    squares = mean([jax.tree.map(np.square, t) for t in each])
    close(jp.scores.taylor(loss_fn, params, *BATCHES, structure=structure), squares)


@pytest.mark.slow
@pytest.mark.parametrize("structure", [jp.Unstructured(), jp.Channels()])
def test_grasp_against_the_whole_hessian(structure):
    params = params_of()
    flat, join = jax.flatten_util.ravel_pytree(params)
    losses = [lambda w, b=b: loss_fn(join(w), b) for b in BATCHES]
    g = sum(np.asarray(jax.grad(f)(flat), np.float64) for f in losses) / 2
    h = sum(np.asarray(jax.hessian(f)(flat), np.float64) for f in losses) / 2
    want = summed(join(jnp.asarray(flat * (h @ g), jnp.float32)), structure)
    close(jp.scores.grasp(loss_fn, params, *BATCHES, structure=structure), want, rtol=1e-3, atol=1e-5)


def test_grasp_keeps_what_the_gradient_norm_would_lose_most_by():
    params = {"w": jnp.array([1.0, 1.0, 1.0])}
    curvature = jnp.array([3.0, 1.0, 2.0])

    def quadratic(p, a):
        return jnp.sum(a * p["w"] ** 2) / 2

    scores = jp.scores.grasp(quadratic, params, curvature)["w"]
    norms = [
        float(jnp.sum(jax.grad(quadratic)({"w": params["w"].at[i].set(0)}, curvature)["w"] ** 2))
        for i in range(3)
    ]
    assert np.argsort(scores).tolist() == np.argsort(norms)[::-1].tolist() == [1, 2, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "chunk"), [(jp.Unstructured(), 3), (jp.Channels(0), 1), (jp.Block((2, 3)), 100)]
)
def test_fisher_against_a_loop_over_samples(structure, chunk):
    params, batches = params_of(), (batch_of(7), batch_of(3, 1))
    squares = []
    for x, y in batches:
        for n in range(len(x)):
            one = products(params, gradient((x[n : n + 1], y[n : n + 1])))
            squares.append(jax.tree.map(np.square, summed(one, structure)))
    got = jp.scores.fisher(loss_fn, params, *batches, structure=structure, chunk=chunk)
    close(got, mean(squares))


@pytest.mark.slow
def test_fisher_is_not_the_square_of_the_mean_gradient():
    x = jnp.array([1.0, -1.0])  # gradients cancel in the batch, not in the samples
    assert jp.scores.snip(bilinear, PAIR, x)["a"] == 0
    assert jp.scores.fisher(bilinear, PAIR, x)["a"] == 36


def test_taylor_ranks_single_weights_as_snip_does():
    snip, taylor = (f(loss_fn, params_of(), BATCHES[0]) for f in (jp.scores.snip, jp.scores.taylor))
    for a, b in zip(jax.tree.leaves(snip), jax.tree.leaves(taylor), strict=True):
        np.testing.assert_allclose(jnp.square(a), b, rtol=1e-5)


def relu_net(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def chain(widths, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(1), len(widths))
    shapes = itertools.pairwise(widths)
    return [jax.random.normal(k, s, dtype) / s[0] ** 0.5 for k, s in zip(keys, shapes, strict=False)]


@pytest.mark.slow
def test_synflow_is_conserved_by_layers_and_by_neurons():
    params = chain([7, 9, 8, 6, 3])
    scores = [np.asarray(s, np.float64) for s in jp.scores.synflow(relu_net, params, jnp.zeros((1, 7)))]
    flow = float(jnp.sum(relu_net([jnp.abs(w) for w in params], jnp.ones((1, 7)))))
    for s in scores:
        assert s.sum() == pytest.approx(flow, rel=1e-5)
    for before, after in itertools.pairwise(scores):
        np.testing.assert_allclose(before.sum(0), after.sum(1), rtol=1e-4)


@pytest.mark.slow
def test_synflow_needs_only_shapes_and_leaves_integers_alone():
    params = {"table": jnp.array([[1.0], [-2.0]]), "w": jnp.array([[3.0]])}

    def fn(p, tokens):
        return p["table"][tokens] @ p["w"]

    scores = jp.scores.synflow(fn, params, jnp.array([1]))
    assert scores["table"].tolist() == [[0], [6]] and scores["w"].tolist() == [[6]]
    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert jp.scores.synflow(lambda p, x: x @ p, jnp.ones((3, 1)), shape).tolist() == [[2], [2], [2]]


@pytest.mark.slow
def test_synflow_scale_keeps_a_deep_network_in_range():
    def deep(params, x):
        for w in params:
            x = x @ w
        return x

    params = [1e3 * w for w in chain([8] * 17)]
    plain = jp.scores.synflow(deep, params, jnp.ones((1, 8)))
    assert not all(bool(jnp.isfinite(s).all()) for s in plain)
    scaled = jp.scores.synflow(deep, params, jnp.ones((1, 8)), scale=2.0**-100)
    small = jp.scores.synflow(deep, [w / 1024 for w in params], jnp.ones((1, 8)))
    for s, want in zip(scaled, small, strict=True):
        np.testing.assert_allclose(s / jnp.sum(s), want / jnp.sum(want), rtol=1e-3)


@pytest.mark.slow
def test_a_norm_in_use_starves_what_lies_before_it():
    """Why the docstring asks for norms to be left out: the sum of what they divide by their own size is fixed."""

    def normed(params, x):
        h = x @ params[0]
        return (h / jnp.linalg.norm(h, axis=-1, keepdims=True)) @ params[1]

    params = chain([4, 6, 2])
    scores = jp.scores.synflow(normed, params, jnp.ones((1, 4)))
    signed = jax.grad(lambda w: jnp.sum(normed([w, jnp.abs(params[1])], jnp.ones((1, 4)))))(
        jnp.abs(params[0])
    )
    assert abs(float(jnp.sum(signed * jnp.abs(params[0])))) < 1e-4 < float(scores[1].sum())


def functions():
    return {
        "snip": lambda p: jp.scores.snip(loss_fn, p, *BATCHES),
        "grasp": lambda p: jp.scores.grasp(loss_fn, p, *BATCHES),
        "taylor": lambda p: jp.scores.taylor(loss_fn, p, *BATCHES),
        "fisher": lambda p: jp.scores.fisher(loss_fn, p, *BATCHES),
        "synflow": lambda p: jp.scores.synflow(mlp, p, BATCHES[0][0]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", functions())
def test_bfloat16_gives_float32_scores_near_those_of_float32(name):
    params = params_of(jnp.bfloat16)
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    for got, want in zip(*(jax.tree.leaves(functions()[name](p)) for p in (params, wide)), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=0.1 * float(jnp.abs(want).max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "structure"), [(AxisType.Auto, jp.Channels()), (AxisType.Explicit, jp.Block((2, 2)))]
)
def test_sharded_parameters_give_the_same_scores(kind, structure):
    params = {"w": jax.random.normal(jax.random.key(4), (8, 4))}
    batch = jnp.arange(1.0, 4.0)

    def loss(p, x):
        return jnp.mean(jnp.sum(jnp.sin(p["w"])) * x)

    def fn(p, x):
        return jnp.sum(p["w"]) * x

    scores = {
        "snip": lambda p: jp.scores.snip(loss, p, batch, structure=structure),
        "grasp": lambda p: jp.scores.grasp(loss, p, batch, structure=structure),
        "taylor": lambda p: jp.scores.taylor(loss, p, batch, structure=structure),
        "fisher": lambda p: jp.scores.fisher(loss, p, batch, structure=structure, chunk=2),
        "synflow": lambda p: jp.scores.synflow(fn, p, batch, structure=structure),
    }
    wanted = {name: score(params) for name, score in scores.items()}
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, NamedSharding(mesh, P("a", "b")))
        for name, score in scores.items():
            got = jax.jit(score)(sharded)
            np.testing.assert_allclose(got["w"], wanted[name]["w"], rtol=1e-4, err_msg=name)
            masks = jp.make_masks(got, 0.5, structure=structure)
            jp.apply_masks(sharded, masks)


@pytest.mark.parametrize("name", ["snip", "grasp", "taylor", "fisher"])
def test_batches_are_given_one_by_one_or_as_one_iterable(name):
    score, params = getattr(jp.scores, name), params_of()
    want = score(loss_fn, params, *BATCHES)
    for batches in (BATCHES, iter(BATCHES)):
        jax.tree.map(np.testing.assert_array_equal, score(loss_fn, params, batches=batches), want)
    with pytest.raises(ValueError, match="`batches` must hold all batches"):
        score(loss_fn, params, *BATCHES, batches=BATCHES)
    with pytest.raises(ValueError, match="`batches` is empty"):
        score(loss_fn, params, batches=[])


# Bad input


def test_bad_input_is_named():
    params = params_of()
    for score in (jp.scores.snip, jp.scores.grasp, jp.scores.taylor, jp.scores.fisher):
        with pytest.raises(ValueError, match="`batches` is empty"):
            score(loss_fn, params)
        with pytest.raises(
            ValueError, match=r"`loss_fn` must return one floating-point number, got float32 of"
        ):
            score(lambda p, b: mlp(p, b[0]), params, BATCHES[0])
    with pytest.raises(ValueError, match="`inputs` is empty"):
        jp.scores.synflow(mlp, params)
    with pytest.raises(ValueError, match="`fn` must return floating-point outputs"):
        jp.scores.synflow(lambda p, x: x.astype(int), params, jnp.ones(2))
    with pytest.raises(ValueError, match="`chunk` must be a whole number"):
        jp.scores.fisher(loss_fn, params, BATCHES[0], chunk=0)
    for batch in (1.0, (jnp.ones((2, 3)), jnp.ones((3, 2))), jnp.ones((0, 3))):
        with pytest.raises(
            ValueError, match="`batches` must hold arrays with the same number of samples along axis 0"
        ):
            jp.scores.fisher(loss_fn, params, batch)
