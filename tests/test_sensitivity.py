"""The table of sensitivities, and the allocation that follows from it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.plots import plot_sensitivity

GRID = (0.25, 0.5, 0.9)


def params_of(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "up": {"kernel": jax.random.normal(keys[0], (4, 8), dtype), "bias": jnp.ones(8, dtype)},
        "down": {"kernel": jax.random.normal(keys[1], (8, 2), dtype)},
        "activation": jnp.tanh,
    }


def loss_fn(params, x):
    h = params["activation"](x @ params["up"]["kernel"] + params["up"]["bias"])
    return jnp.mean((h @ params["down"]["kernel"]).astype(jnp.float32) ** 2)


X = jax.random.normal(jax.random.key(5), (6, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("structure", "chunk"), [(jp.Unstructured(), 2), (jp.Channels(), 1)])
def test_same_as_pruning_each_layer_with_make_masks(structure, chunk):
    params = params_of()
    table = jp.sensitivity(loss_fn, params, X, GRID, structure=structure, chunk=chunk)
    assert table.paths == ("down/kernel", "up/kernel") and table.others == ("activation", "up/bias")
    assert table.dense == pytest.approx(float(loss_fn(params, X)), rel=1e-6)
    assert table.weights == (16, 32)
    assert table.units == ((2, 8) if structure == jp.Channels() else (16, 32))
    scores = jp.scores.magnitude(params)
    for path, losses in zip(table.paths, table.losses, strict=True):
        where = jp.prunable(params, include=path)
        for s, loss in zip(GRID, losses, strict=True):
            masks = jp.make_masks(scores, s, structure=structure, where=where)
            assert loss == pytest.approx(float(loss_fn(jp.apply_masks(params, masks), X)), rel=1e-5)


@pytest.mark.slow
def test_one_program_for_all_layers_and_sparsities():
    traces = []

    def counted(params, x):
        traces.append(1)
        return loss_fn(params, x)

    jp.sensitivity(counted, params_of(), X, GRID)
    assert len(traces) == 1


def test_scores_are_a_function_or_a_tree():
    params = {"a": jnp.array([[1.0, 2.0]]), "c": jnp.array([[3.0, 10.0]])}
    loss = lambda p, x: x * (13 - p["a"].sum() - p["c"].sum())  # noqa: E731
    turned = jax.tree.map(jnp.negative, params)
    by_function = jp.sensitivity(loss, params, 1.0, [0.5], score=lambda p: jax.tree.map(jnp.negative, p))
    by_tree = jp.sensitivity(loss, params, 1.0, [0.5], score=turned)
    assert by_tree.losses.tolist() == by_function.losses.tolist() == [[-1], [7]]
    with pytest.raises(ValueError, match="`score` must have the tree structure"):
        jp.sensitivity(loss, params, 1.0, [0.5], score={"a": turned["a"]})


@pytest.mark.slow
def test_bfloat16_and_patterns():
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    table = jp.sensitivity(
        lambda p, x: x - jnp.sum(p["w"]), params, jnp.bfloat16(1), (0.25, 0.5), structure=jp.NM(2, 4)
    )
    assert table.losses.tolist() == [[-11, -7]]


def table_of(losses, units=None, grid=GRID, **others):
    paths = tuple("abcdefg"[: len(losses)])
    units = units or (100,) * len(losses)
    return jp.Sensitivity(paths, grid, np.array(losses, np.float64), 1.0, units, units, **others)


def test_saved_table_is_plain_json_and_reads_back_the_same(tmp_path):
    table = table_of([[1.0, 2.0, np.nan], [1.5, 2.5, 3.5]], others=("bias",))
    table.save(tmp_path / "table.json")
    back = jp.Sensitivity.load(tmp_path / "table.json")
    assert json.loads(table.to_json())["losses"] == [[1.0, 2.0, None], [1.5, 2.5, 3.5]]
    np.testing.assert_array_equal(back.losses, [[1, 2, np.inf], [1.5, 2.5, 3.5]])
    assert (back.paths, back.sparsities, back.dense, back.units, back.weights, back.others) == (
        table.paths, table.sparsities, table.dense, table.units, table.weights, table.others
    )  # fmt: skip
    for text in ("", "{}", "[1]", '{"format": "other"}', table.to_json().replace("0.25,", "")):
        with pytest.raises(ValueError, match="is not a 'jaxprune sensitivity 1' table"):
            jp.Sensitivity.from_json(text)


def test_plot_has_a_line_a_layer_that_starts_at_the_dense_loss():
    axes = plot_sensitivity(table_of([[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]])).axes[0]
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[100, 1], [75, 1.5], [50, 2.5], [10, 3.5]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsities": (0.5, 1.0)}, r"`sparsities` must be numbers in \(0, 1\)"),
        ({"sparsities": ()}, "`sparsities` must be numbers"),
        ({"sparsities": (90,)}, "They are fractions"),
        ({"chunk": 0}, "`chunk` must be a whole number"),
        ({"structure": jp.NM(2, 4), "sparsities": (0.5, 0.75)}, r"must not pass 0\.5, the sparsity of NM"),
        ({"loss_fn": lambda p, x: x}, "`loss_fn` must return one floating-point number"),
        ({"loss_fn": lambda p, x: jnp.log(-1.0)}, "`loss_fn` must be finite with nothing pruned, got nan"),
    ],
)
def test_bad_input_is_named(arguments, message):
    given = {"loss_fn": loss_fn, **arguments}
    with pytest.raises(ValueError, match=message):
        jp.sensitivity(given.pop("loss_fn"), params_of(), X, **given)


# from_sensitivity


def pruned_by(shares, table):
    return [round(shares[path] * n) for path, n in zip(table.paths, table.units, strict=True)]


def test_the_layer_that_does_not_mind_goes_first():
    table = table_of([[1.0, 1.0, 1.0], [2.0, 4.0, 9.0]], (60, 40))
    assert pruned_by(jp.allocate.from_sensitivity(table, 0.54), table) == [54, 0]
    assert pruned_by(jp.allocate.from_sensitivity(table, 0.6), table) == [54, 6]


@pytest.mark.parametrize("seed", range(4))
def test_no_choice_of_grid_points_is_better_and_the_total_is_exact(seed):
    """Every choice of grid points (0 included) for three layers that prunes at least as much, by brute force."""
    rng = np.random.default_rng(seed)
    units = tuple(int(n) for n in rng.integers(20, 200, 3))
    table = table_of(1 + np.sort(rng.random((3, 3)) ** 3, axis=1), units)
    for sparsity in (0.1, 0.37, 0.6, 0.85):
        shares = jp.allocate.from_sensitivity(table, sparsity)
        assert sum(pruned_by(shares, table)) == round(sparsity * sum(units))
        grid = (0.0, *GRID)
        rises = np.sqrt(np.concatenate([np.zeros((3, 1)), table.losses - 1], axis=1))
        best = min(
            sum(rises[layer, j] for layer, j in enumerate(choice))
            for choice in np.ndindex(4, 4, 4)
            if sum(grid[j] * n for j, n in zip(choice, units, strict=True)) >= sparsity * sum(units)
        )
        hulls = [
            min(
                np.interp(shares[p], [grid[a], grid[b]], [r[a], r[b]])
                for a in range(4)
                for b in range(a + 1, 4)
                if grid[a] <= shares[p] <= grid[b] + 0.05
            )
            for p, r in zip(table.paths, rises, strict=True)
        ]
        assert sum(hulls) <= best + 0.02 * (1 + best)


def test_equal_layers_are_pruned_equally():
    for losses in ([[1.0, 1.0, 1.0]] * 3, [[1.1, 1.2, 2.0]] * 3):
        table = table_of(losses)
        assert pruned_by(jp.allocate.from_sensitivity(table, 0.6), table) == [60, 60, 60]


def test_losses_that_fall_are_chance_and_infinite_ones_end_the_grid():
    table = table_of([[0.9, 0.8, 0.7], [1.0, 1.0, np.inf]])
    assert pruned_by(jp.allocate.from_sensitivity(table, 0.7), table) == [90, 50]
    with pytest.raises(ValueError, match="is beyond the table"):
        jp.allocate.from_sensitivity(table, 0.75)


def test_sparsity_zero_and_layers_of_one_and_no_weight():
    table = table_of([[1.1, 1.2, 1.3]] * 3, (1, 0, 100))
    assert pruned_by(jp.allocate.from_sensitivity(table, 0.0), table) == [0, 0, 0]
    assert sum(pruned_by(jp.allocate.from_sensitivity(table, 0.5), table)) == round(0.5 * 101)


def test_flops_budget_spares_the_cheap_layer():
    table = table_of([[1.1, 1.2, 1.3]] * 2)
    shares = jp.allocate.from_sensitivity(table, 0.45, "flops", {"a": 1000, "b": 10})
    removed = 1000 * shares["a"] + 10 * shares["b"]
    assert shares["b"] == 0 and removed == pytest.approx(0.45 * 1010, abs=5)


@pytest.mark.slow
def test_allocation_goes_into_make_masks_for_any_tree_with_its_paths():
    params = params_of()
    table = jp.sensitivity(loss_fn, params, X, GRID)
    shares = jp.allocate.from_sensitivity(table, 0.5)
    assert jax.tree.structure(shares) == jax.tree.structure(params)
    assert shares["activation"] == shares["up"]["bias"] == 0
    for tree in (params, {"params": params}):
        assert jp.sparsity(tree, jp.make_masks(jp.scores.magnitude(tree), shares)) == 0.5
    by_path = jp.allocate.from_sensitivity(jp.Sensitivity.from_json(table.to_json()), 0.5)
    assert set(by_path) == {"activation", "down/kernel", "up/bias", "up/kernel"}
    assert (
        by_path["up/kernel"] == shares["up"]["kernel"] and by_path["down/kernel"] == shares["down"]["kernel"]
    )
    assert jp.sparsity(params, jp.make_masks(jp.scores.magnitude(params), by_path)) == 0.5


def test_a_table_from_a_file_gives_the_tree_that_it_is_given():
    table = table_of([[1.0, 1.0, 1.0], [2.0, 4.0, 9.0]], (60, 40))
    flat = jp.allocate.from_sensitivity(table, 0.6)
    assert flat == {"a": 0.9, "b": 0.15} == jp.allocate.from_sensitivity(table, 0.6, params={"a": X, "b": X})
    nested = jp.allocate.from_sensitivity(table, 0.6, params={"params": {"b": X, "a": X}})
    assert nested == {"params": flat}
    for params, message in (
        ({"a": X}, "only the table has 'b'"),
        ({"a": X, "b": X, "c": X}, "only `params` has 'c'"),
    ):
        with pytest.raises(ValueError, match=f"`params` must have the paths of the table, but {message}"):
            jp.allocate.from_sensitivity(table, 0.6, params=params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.95,), "`sparsity` 0.95 of the params is beyond the table: .*it removes 0.9"),
        ((90,), "It is a fraction"),
        ((0.5, "weights"), "`budget` must be 'params' or 'flops', got 'weights'"),
        ((0.5, "flops"), "`cost` is needed"),
        ((0.5, "flops", {"a": 1}), "`cost` lacks 'b'"),
        ((0.5, "flops", {"a": 0, "b": 0}), "`cost` is 0 for every layer"),
        ((0.5, "params", {"a": 1, "b": 1}), "`cost` must be given with the budget 'flops' only"),
    ],
)
def test_bad_budgets_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        jp.allocate.from_sensitivity(table_of([[1.1, 1.2, 1.3]] * 2), *arguments)
