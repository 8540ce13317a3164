"""The table and the plot of what calibration tells of layers and windows."""

import numpy as np
import pytest

import jaxprune as jp
from jaxprune.calibration import LayerResult, WindowResult

LAYERS = [LayerResult(f"layers/{i}/{name}", 0.1 * (i + 1), 0.5) for i in range(3) for name in ("up", "down")]
WINDOWS = [WindowResult(f"layers/{i}/down, layers/{i}/up", 0.1, 0.5, 0.2 * (i + 1)) for i in range(3)]


def logged(*rows):
    log = jp.LayerLog()
    for row in rows:
        log(row)
    return log


def test_the_table_has_a_row_for_layers_that_are_alike():
    text = str(logged(*LAYERS, LayerResult("head", 0.05, 0.25), *WINDOWS))
    layers, windows = ([line.split() for line in part.splitlines()] for part in text.split("\n\n"))
    assert layers[0] == ["layer", "sparsity", "error", "largest"]
    assert layers[2] == ["layers/*/up", "x", "3", "0.5000", "0.2", "0.3"]  # the mean of .1, .2, .3
    assert layers[-1] == ["head", "0.2500", "0.05"]
    assert windows[0] == ["window", "sparsity", "before", "error", "largest"]
    assert windows[2] == ["layers/*/down,", "layers/*/up", "x", "3", "0.5000", "0.4", "0.1", "0.1"]


def test_a_log_is_a_sequence_of_results():
    log = logged(*LAYERS, *WINDOWS)
    assert list(log) == [*LAYERS, *WINDOWS] and len(log) == 9 and log[-1] == WINDOWS[-1]
    assert log.layers == LAYERS and log.windows == WINDOWS
    assert str(jp.LayerLog()) == "no layers" and repr(log) == str(log)
    assert "largest" not in str(logged(LAYERS[0])) and "nan" in str(logged(LAYERS[0]._replace(error=np.nan)))


def test_the_plot_has_the_errors_and_a_panel_for_windows():
    layers, windows = jp.plots.layer_errors(logged(*LAYERS, *WINDOWS), "title").axes
    np.testing.assert_allclose(layers.lines[0].get_ydata(), [row.error for row in LAYERS])
    after, before = windows.lines
    np.testing.assert_allclose(after.get_ydata(), [0.1] * 3)
    np.testing.assert_allclose(before.get_ydata(), [0.2, 0.4, 0.6])
    (axes,) = jp.plots.layer_errors({"a": LAYERS, "b": LAYERS[:2]}).axes
    assert axes.get_xlabel() == "layer" and axes.get_yscale() == "log"
    layers, windows = jp.plots.layer_errors({"a": LAYERS, "b": [*LAYERS, *WINDOWS]}).axes
    assert windows.lines[0].get_color() == layers.lines[1].get_color() != layers.lines[0].get_color()
    assert [text.get_text() for text in windows.get_legend().get_texts()] == ["a", "b"]
    (axes,) = jp.plots.layer_errors([LAYERS[0]._replace(error=0.0)]).axes
    assert axes.get_yscale() == "linear"
    with pytest.raises(ValueError, match="no results"):
        jp.plots.layer_errors(jp.LayerLog())
