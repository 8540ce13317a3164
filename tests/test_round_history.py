import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.round_history import Round, equal_runs


def rows(sparsity, kept, loss, **changed):
    n = len(sparsity)
    row = Round(
        jnp.arange(n), jnp.float32(sparsity), jnp.int32(kept), {"loss": jnp.float32(loss)}, {}, (), ()
    )
    return row._replace(**changed)


def cells(history):
    return [line.split() for line in str(history).splitlines()]


def test_a_history_prints_as_a_table_with_a_row_for_each_round():
    history = rows([0, 0.75], [4000, 1000], [1, 0.5], evaluation={"accuracy": jnp.float32([0.9, 0.25])})
    header, line, first, second = cells(history)
    assert header == ["round", "sparsity", "kept", "training", "loss", "accuracy"] and set(line[0]) == {"─"}
    assert first == ["0", "0.0000", "4,000", "1", "0.9"]
    assert second == ["1", "0.7500", "1,000", "0.5", "0.25"]
    assert repr(history) == str(history)


def test_seeds_print_as_mean_and_deviation_and_each_sparsity_by_itself():
    seeds = [rows([0, 0.75], [4, 1], [loss, loss + 1]) for loss in (1.0, 3.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    assert cells(stacked)[2:] == [  # the deviation of 1 and 3 is the square root of 2
        ["0", "0.0000", "4", "2", "±", "1.4"],
        ["1", "0.7500", "1", "3", "±", "1.4"],
    ]
    other = rows([0, 0.5], [4, 2], [7.0, 8.0])
    both = jax.tree.map(lambda *x: jnp.stack(x), seeds[0], other, seeds[1])
    assert [runs.tolist() for runs in equal_runs(both.sparsity)] == [[1], [0, 2]]
    assert [line[-1] for line in cells(both)[2:]] == ["7", "8", "1.4", "1.4"]


def test_one_row_prints_with_its_number():
    history = rows([0, 0.5, 0.75], [4, 2, 1], [3, 2, 1])
    assert cells(jax.tree.map(lambda x: x[2], history))[2:] == [["2", "0.7500", "1", "1"]]


def test_what_is_not_known_prints_its_fields():
    shown = []

    @jax.jit
    def traced(history):
        shown.append(repr(history))
        return history

    history = rows([0, 0.5], [4, 2], [1, 2], masks={"w": jnp.ones((2, 3), bool)})
    traced(history)
    shown.append(repr(jax.eval_shape(lambda: history)))
    assert all(text.startswith("Round(round=") and "kept=" in text for text in shown)
    assert "loss" not in str(
        history._replace(metrics={"loss": jnp.ones((2, 5)), "key": jax.random.split(jax.random.key(0))})
    )
    history.metrics["loss"].delete()
    assert cells(history)[2:] == [["0", "0.0000", "4"], ["1", "0.5000", "2"]]
    assert np.shape(history.sparsity) == (2,)
