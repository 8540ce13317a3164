"""One pass of the batches through a model: each weight is pruned on the outputs of the pruned weights before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxprune.calibration.engine.activation_statistics import ActivationStatistics
from jaxprune.calibration.engine.interleaved import WindowsOnTheWay
from jaxprune.calibration.engine.journal import Journal, Record, site_name
from jaxprune.calibration.engine.layers import LayerWeights, Start
from jaxprune.calibration.engine.model import (
    CalibrationModel,
    check_row_weights,
    shared_moments,
    shared_weights,
    with_progress,
)
from jaxprune.calibration.engine.parts import Part
from jaxprune.calibration.engine.targets import DenseTargets
from jaxprune.calibration.methods import Refinement
from jaxprune.jaxprs.residual import residual_streams
from jaxprune.jaxprs.stream import sites
from jaxprune.statistics import Kind


def send_through(
    layers: LayerWeights,
    start: Start,
    refine: Sequence[Refinement] = (),
    dense_targets: float = 0.0,
    on_layer: Callable[[Any], None] | None = None,
    progress: bool | None = None,
    kind: Kind = "full",
    statistics: ActivationStatistics | None = None,
    windows: WindowsOnTheWay | None = None,
    journal: Journal | None = None,
    told: Callable[[], Any] | None = None,
) -> None:
    """Sends the batches through the model, and prunes every weight on the way.

    `statistics` follow the activations. Each window of `windows` is refitted as soon as its weights are pruned. What
    a `journal` has is taken from there, and what it lacks is written to it. What `told` returns stands above
    the progress bar.
    """
    model = layers.model
    again = shared_weights(model)
    shared = shared_moments(model, again if journal is None else _missing(model, again, journal))
    residual = residual_streams(model.program) if dense_targets else {}
    residual = {use: pair for use, pair in residual.items() if (use.leaf, use.matrix) not in again}
    also, also_dense = (windows.wanted, windows.wanted_dense) if windows else ([], [])
    also = [*also, *([] if statistics is None else statistics.wanted)]
    dense = DenseTargets(model, residual, dense_targets, also_dense) if dense_targets or also_dense else None
    stream = model.stream([*(passing for _, passing in residual.values()), *also])
    if statistics is not None:
        statistics.follow(stream)
    rows: list[Any] = []

    def note(row):
        rows.append(row)
        if on_layer is not None:
            on_layer(row)

    reporting = note if on_layer is not None or (journal is not None and kind == "full") else None

    def prune(site, own, passing):
        """Prunes the weights of a site; whether the row weights fit its activations."""
        fit = False
        for use in site.uses:
            if (use.leaf, use.matrix) in again and layers.is_open(use):
                layers.prune([use], shared[use.leaf, use.matrix], {}, start, refine, reporting)
        if own:
            moments, fit = model.moments(site, kind)
            targets = {}
            if dense is not None:
                targets = dense.at(site._replace(uses=own), moments, passing)
            layers.prune(own, moments, targets, start, refine, reporting)
        elif dense is not None:
            dense.skip(own, passing)
        return fit

    fits = False
    for number, site in enumerate(with_progress(stream, progress, "prune", told)):
        opened = [use for use in site.uses if layers.is_open(use)]
        own = [use for use in site.uses if (use.leaf, use.matrix) not in again]
        streams = [stream.take(residual[use][1]) for use in own if use in residual]
        passing = streams[0] if len(own) == len(streams) == 1 else None
        record = None if journal is None else journal.read(site_name(number))
        if record is None:
            before = dict(layers.unseen)
            rows.clear()
            fit = prune(site, own, passing)
            if journal is not None:
                unseen = {leaf: n - before.get(leaf, 0) for leaf, n in layers.unseen.items()}
                outs = [use.out for use in opened if use.out in layers.output_weights]
                facts = {
                    "fit": fit,
                    "unseen": [[leaf, n] for leaf, n in unseen.items()],
                    "output_weights": [[out, layers.output_weights[out].tolist()] for out in outs],
                }
                journal.write(site_name(number), Record(layers.arrays_of(opened), facts, list(rows)))
        else:
            if dense is not None:
                dense.skip(own, passing)
            fit = record.facts["fit"]
            layers.put_back(opened, record)
            for row in record.rows:
                note(row)
        fits = fits or fit
        for leaf in {use.leaf for use in opened}:
            value = layers.on_device(leaf)
            stream.set_param(leaf, value)
            if statistics is not None:
                statistics.changed(leaf, value)
        if windows is not None:
            there = None if dense is None else dense.stream
            windows.after(layers, stream, there, statistics, on_layer, journal)
    if statistics is not None:
        statistics.finish()
    if not (fits or again):
        check_row_weights(model.row_weights)


def _missing(model: CalibrationModel, parts: set[Part], journal: Journal) -> set[Part]:
    """The parts whose first site the journal lacks."""
    first: dict[Part, int] = {}
    for number, uses in enumerate(sites(model.program)):
        for use in uses:
            first.setdefault((use.leaf, use.matrix), number)
    return {part for part in parts if not journal.has(site_name(first[part]))}
