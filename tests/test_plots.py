"""What the plots of the ticket laboratory draw: the numbers that they are given."""

import jax
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.round_history import Round
from jaxprune.tickets import Connectivity, Instabilities


def drawn(axes):
    """Label -> y values, of the lines with a label."""
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
    return {label: y for label, y in lines.items() if not label.startswith("_")}


def rows(barrier, seeds=None):
    split = np.array([0, 10, 100])
    return Instabilities(split if seeds is None else np.stack([split] * seeds), None, None, barrier)


def history(seeds, evaluation):
    sparsity = np.broadcast_to([0, 0.5, 0.75], (*seeds, 2, 3))
    return Round(None, sparsity, None, {}, evaluation, (), ())


def test_instability_has_a_panel_for_each_number_and_means_over_seeds():
    barrier = {"loss": np.arange(6.0).reshape(2, 3), "error": np.ones((2, 3))}
    lines = {
        "dense": rows(barrier, 2),
        "20 % kept": rows({"loss": np.zeros((1, 3)), "error": np.zeros((1, 3))}),
    }
    figure = jp.plots.plot_instability(lines, ("stable", 2.0))
    error, loss = figure.axes
    assert [error.get_ylabel(), loss.get_ylabel()] == ["barrier of error", "barrier of loss"]
    np.testing.assert_array_equal(drawn(loss)["dense"], [1.5, 2.5, 3.5])
    assert drawn(error).keys() == {"dense", "20 % kept", "stable"} and len(loss.collections) == 1
    assert [tick.get_text() for tick in loss.get_xticklabels()] == ["0", "10", "100"]
    (axes,) = jp.plots.plot_instability({"dense": rows(np.ones(3))}, metric="value").axes
    assert axes.get_ylabel() == "barrier"


def test_rewinding_has_a_line_for_each_sparsity_and_the_dense_network():
    values = np.arange(12.0).reshape(2, 2, 3)
    (axes,) = jp.plots.plot_rewinding((0, 5), history((2,), {"accuracy": values})).axes
    found = drawn(axes)
    assert list(found) == ["50 % kept", "25 % kept", "dense"]
    np.testing.assert_array_equal(found["25 % kept"], values[..., 2].mean(0))
    np.testing.assert_array_equal(found["dense"], [values[..., 0].mean()] * 2)
    (axes,) = jp.plots.plot_rewinding((0, 5), history((), values[0]), rounds=[2]).axes
    assert list(drawn(axes)) == ["25 % kept", "dense"]


def test_sanity_checks_begin_with_the_ticket():
    results = {"random": {"accuracy": np.array([0.5, 0.7])}, "ticket": {"accuracy": np.array([0.9, 0.9])}}
    (axes,) = jp.plots.plot_sanity_checks(results).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ticket", "random"]
    means = [container.lines[0].get_xdata()[0] for container in axes.containers]
    np.testing.assert_allclose(means, [0.9, 0.6])
    (axes,) = jp.plots.plot_sanity_checks({"random": 1.0, "signs": 2.0}).axes
    assert len(axes.containers) == 2


def test_connectivity_has_a_panel_for_each_number():
    line = Connectivity(np.linspace(0, 1, 3), {"loss": np.ones(3), "error": np.zeros(3)}, None)
    assert [a.get_ylabel() for a in jp.plots.plot_connectivity({"pair": line}).axes] == ["error", "loss"]
    (axes,) = jp.plots.plot_connectivity({"pair": line}, metric="loss").axes
    np.testing.assert_array_equal(drawn(axes)["pair"], np.ones(3))


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (lambda: jp.plots.plot_instability({}), "`lines` is empty"),
        (lambda: jp.plots.plot_sanity_checks({}), "`results` is empty"),
        (lambda: jp.plots.plot_sanity_checks({"a": np.ones((2, 2))}), r"must be numbers \(seeds,\)"),
        (lambda: jp.plots.plot_sanity_checks({"a": {"x": 1.0}, "b": {"y": 1.0}}), "the same numbers in each"),
        (
            lambda: jp.plots.plot_instability({"a": rows({"x": np.ones(3)})}, metric="y"),
            "one of .'x'., got 'y'",
        ),
        (
            lambda: jp.plots.plot_rewinding((0,), history((), np.ones((2, 3)))),
            "`steps` must be those of the history",
        ),
        (lambda: jp.plots.plot_rewinding((0, 1), history((), np.ones((2, 3))), [3]), "among 1 to 2"),
        (lambda: jp.plots.plot_rewinding((0, 1), history((), ())), "holds no numbers"),
    ],
)
def test_what_cannot_be_plotted_is_an_error(plot, message):
    with pytest.raises(ValueError, match=message):
        plot()


def test_a_history_may_end_with_nothing_kept_and_hold_what_is_no_number():
    keys = jax.random.split(jax.random.key(0), 3)
    rows = Round(None, np.array([0, 0.5, 1.0]), None, {}, {"loss": np.arange(3.0), "key": keys}, (), ())
    (axes,) = jp.plots.history(rows).axes
    np.testing.assert_array_equal(drawn(axes)["loss"], [0, 1, 2])
    left, right = axes.get_xlim()
    assert 100 < left < 110 and 40 < right < 50
    assert jp.plots.history(rows._replace(sparsity=np.ones(3))).axes


def test_several_histories_are_lines_and_a_sweep_has_a_point_for_each_sparsity():
    rounds = Round(
        None, np.array([[0, 0.5], [0, 0.5]]), None, {}, {"accuracy": np.array([[1, 2], [3, 6]])}, (), ()
    )
    # Sparsities (2,) x seeds (2,) x trainings (1,): what `vmap` of `vmap` over a recipe of one training gives.
    sweep = Round(
        None,
        np.array([[[0.9], [0.9]], [[0.5], [0.5]]]),
        None,
        {},
        {"accuracy": np.array([[[1], [3]], [[7], [9]]]), "only here": np.ones((2, 2, 1))},
        (),
        (),
    )
    (axes,) = jp.plots.history({"rounds": rounds, "sweep": sweep}).axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_allclose(lines["rounds"], [[100, 2], [50, 4]])
    np.testing.assert_allclose(lines["sweep"], [[50, 8], [10, 2]])
    assert len(axes.collections) == 2 and axes.get_legend() is not None


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ({}, "is empty"),
        (
            {
                "a": Round(None, np.zeros(1), None, {}, {"x": np.zeros(1)}, (), ()),
                "b": Round(None, np.zeros(1), None, {}, {"y": np.zeros(1)}, (), ()),
            },
            r"'a': \['x'\]; 'b': \['y'\]",
        ),
        (
            Round(None, np.array([[0.5], [0.5], [0.9]]), None, {}, {"x": np.ones((3, 1))}, (), ()),
            "as many seeds",
        ),
    ],
)
def test_histories_that_do_not_fit_together_are_an_error(histories, message):
    with pytest.raises(ValueError, match=message):
        jp.plots.history(histories)
