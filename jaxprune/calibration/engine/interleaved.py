"""Windows that are refitted while a model is pruned: each as soon as its last weight is pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxprune.calibration.engine.activation_statistics import ActivationStatistics
from jaxprune.calibration.engine.journal import Journal
from jaxprune.calibration.engine.layers import LayerWeights
from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.calibration.engine.windows import Windows, are_weights, trainable
from jaxprune.calibration.methods import Refit
from jaxprune.jaxprs.stream import Stream, sites
from jaxprune.jaxprs.windows import last_sites
from jaxprune.params import PyTree, flatten_with_paths


class WindowsOnTheWay:
    """The windows of a model that is being pruned, and the number of the site after which each is complete."""

    def __init__(self, windows: Windows):
        self._windows = windows
        self.wanted, self.wanted_dense = windows.wanted, windows.wanted_dense
        last = last_sites(
            windows.program, [[use.x for use in uses] for uses in sites(windows.program)], windows.windows
        )
        self._waiting = list(zip(last, range(len(windows.windows)), strict=True))
        self._site = -1

    def after(
        self,
        layers: LayerWeights,
        stream: Stream,
        dense: Stream | None,
        statistics: ActivationStatistics | None,
        on_layer: Callable[[Any], None] | None,
        journal: Journal | None = None,
    ) -> None:
        """Refits the windows that are complete after one more site, once the statistics in them are up to date."""
        self._site += 1
        while self._waiting and self._waiting[0][0] <= self._site:
            _, number = self._waiting.pop(0)
            window = self._windows.windows[number]
            if statistics is not None:
                for out in window.outs:
                    statistics.update_before(out)
            result = self._windows.refit_one(number, stream, dense, journal, layers.output_weights)
            for leaf in {part.leaf for part in window.parts.values()}:
                layers.put(leaf, stream.param(leaf))
                if statistics is not None:
                    statistics.changed(leaf, stream.param(leaf))
            if on_layer is not None:
                on_layer(result)


def windows_on_the_way(
    model: CalibrationModel, params: PyTree, layers: LayerWeights, refit: Refit, dense_targets: float
) -> WindowsOnTheWay:
    """The windows to refit: weights that are pruned, and what is no weight, are trained."""
    paths, _, _ = flatten_with_paths(params)
    position = {path: leaf for leaf, path in enumerate(model.paths)}
    flags, weights = trainable(params, None, refit), are_weights(params)
    trained = {
        position[path]
        for path, flag, is_weight in zip(paths, flags, weights, strict=True)
        if flag and (not is_weight or position[path] in layers.masks)
    }
    strength = dense_targets if refit.dense_targets is None else refit.dense_targets
    return WindowsOnTheWay(
        Windows(
            model.program,
            model.paths,
            model.values,
            layers.masks,
            trained,
            model.row_weights,
            refit,
            strength,
        )
    )
