"""One pass of the batches through a model: each weight is pruned on the outputs of the pruned weights before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxprune.calibration.engine.activation_statistics import ActivationStatistics
from jaxprune.calibration.engine.interleaved import WindowsOnTheWay
from jaxprune.calibration.engine.layers import LayerWeights, Start
from jaxprune.calibration.engine.model import check_row_weights, shared_moments, with_progress
from jaxprune.calibration.engine.targets import DenseTargets
from jaxprune.calibration.methods import Refinement
from jaxprune.jaxprs.residual import residual_streams
from jaxprune.statistics import Kind


def send_through(
    layers: LayerWeights,
    start: Start,
    refine: Sequence[Refinement] = (),
    dense_targets: float = 0.0,
    on_layer: Callable[[Any], None] | None = None,
    progress: bool = False,
    kind: Kind = "full",
    statistics: ActivationStatistics | None = None,
    windows: WindowsOnTheWay | None = None,
) -> None:
    """Sends the batches through the model, and prunes every weight on the way.

    `statistics` follow the activations. Each window of `windows` is refitted as soon as its weights are pruned.
    """
    model = layers.model
    shared = shared_moments(model)
    residual = residual_streams(model.program) if dense_targets else {}
    residual = {use: pair for use, pair in residual.items() if (use.leaf, use.matrix) not in shared}
    also, also_dense = (windows.wanted, windows.wanted_dense) if windows else ([], [])
    also = [*also, *([] if statistics is None else statistics.wanted)]
    dense = DenseTargets(model, residual, dense_targets, also_dense) if dense_targets or also_dense else None
    stream = model.stream([*(passing for _, passing in residual.values()), *also])
    if statistics is not None:
        statistics.follow(stream)
    fits = False
    for site in with_progress(stream, progress, "prune"):
        changed = {}
        for use in site.uses:
            if (use.leaf, use.matrix) in shared:
                moments = shared[use.leaf, use.matrix]
                changed.update(layers.prune([use], moments, {}, start, refine, on_layer))
        own = [use for use in site.uses if (use.leaf, use.matrix) not in shared]
        if own:
            streams = [stream.take(residual[use][1]) for use in own if use in residual]
            passing = streams[0] if len(own) == len(streams) == 1 else None
            moments, fit = model.moments(site, kind)
            fits = fits or fit
            targets = {}
            if dense is not None:
                targets = dense.at(site._replace(uses=own), moments, passing)
            changed.update(layers.prune(own, moments, targets, start, refine, on_layer))
        elif dense is not None:
            dense.skip()
        for leaf, value in changed.items():
            stream.set_param(leaf, value)
            if statistics is not None:
                statistics.changed(leaf, value)
        if windows is not None:
            windows.after(layers, stream, None if dense is None else dense.stream, statistics, on_layer)
    if statistics is not None:
        statistics.finish()
    if not (fits or shared):
        check_row_weights(model.row_weights)
