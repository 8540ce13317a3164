"""Weights about which the calibration data have no information: their inputs are 0 in every row."""

from __future__ import annotations

import warnings

from jaxprune.calibration.engine.model import CalibrationModel, shared_weights

_NAMED = 20  # paths that a warning names


def warn_of_unseen(found: dict[str, tuple[int, int]], then: str, stacklevel: int) -> None:
    """Warns of unseen weights, if there are any.

    Args:
      found: path -> number of its unseen weights, and number of all its weights.
      then: a sentence, without the period, that says what is done with the unseen weights.
      stacklevel: stack level of the caller, as for `warnings.warn`.
    """
    named = [f"{path!r} ({n} of {size})" for path, (n, size) in found.items() if n]
    if not named:
        return
    more = f", ... ({len(named)} in all)" if len(named) > _NAMED else ""
    warnings.warn(
        f"`batches` say nothing about weights whose inputs are 0 in every row: {', '.join(named[:_NAMED])}"
        f"{more}. {then}. Either no batch reaches these weights: add one that does. Or the units that they multiply "
        "are all 0 or pruned.",
        stacklevel=stacklevel + 1,
    )


def warn_of_unseen_leaves(
    model: CalibrationModel, unseen: dict[int, int], then: str, stacklevel: int
) -> None:
    """The same, given the number of unseen weights of each leaf of a model."""
    found = {model.paths[leaf]: (n, model.values[leaf].size) for leaf, n in unseen.items()}
    warn_of_unseen(found, then, stacklevel + 1)


def unseen_when_dense(model: CalibrationModel, unseen: dict[int, int]) -> dict[int, int]:
    """Of the numbers of unseen weights of each leaf, those whose inputs are 0 in the dense model as well.

    The others multiply units that were pruned whole, on which batches can't say anything. It takes one pass, if there
    are unseen weights at all.
    """
    wanted = {leaf for leaf, n in unseen.items() if n}
    again = {leaf for leaf, _ in shared_weights(model)}  # pruned on the inputs in the dense model
    found = {leaf: n if leaf in again else 0 for leaf, n in unseen.items()}
    if wanted - again:
        for site in model.stream():
            uses = [use for use in site.uses if use.leaf in wanted - again]
            zeros = int(model.moments(site, "diagonal")[0].unseen.sum()) if uses else 0
            for use in uses:
                found[use.leaf] += zeros * use.matrix.shape[2]
    return {leaf: min(n, unseen[leaf]) for leaf, n in found.items()}
