"""The scores that commands know by name, and what each of them needs."""

from __future__ import annotations

from jaxprune.calibration import calibrate
from jaxprune.own_model.checking import Checked
from jaxprune.params import PyTree
from jaxprune.surgery import (
    Branches,
    Groups,
    UnitScores,
    activation_scores,
    batch_norm_scores,
    block_influence,
    branch_norms,
    branch_taylor,
    fpgm_scores,
    l2_scores,
    loss_increase,
    obs_scores,
    reap_scores,
    taylor_scores,
)

_BATCHES = "calibration batches: let the model's `batches` be some, each a tuple of inputs"
_LOSS = "a loss: let the model's `loss` be a function loss(params, batch)"


def unit_scores_by_name(name: str, groups: Groups, params: PyTree, of: Checked, loss: object) -> UnitScores:
    """Scores of units.

    Args:
      name: an option of --score.
      groups, params: the groups and the parameters that they were found with.
      of: the model.
      loss: the loss of these parameters, or None.

    Raises:
      ValueError: if the model lacks what the score needs.
    """
    if name in ("activations", "obs", "reap", "taylor") and not of.batches:
        raise ValueError(f"--score {name} needs {_BATCHES}.")
    if name == "taylor" and loss is None:
        raise ValueError(f"--score taylor needs {_LOSS}.")
    if name == "magnitude":
        return l2_scores(groups, params)
    if name == "fpgm":
        return fpgm_scores(groups, params)
    if name == "batch_norm":
        return batch_norm_scores(groups, params)
    if name == "activations":
        return activation_scores(groups, params, of.batches)
    if name == "reap":
        return reap_scores(groups, params, of.batches)
    if name == "obs":
        assert groups.fn is not None
        return obs_scores(groups, params, calibrate(groups.fn, params, of.batches, moments="full"))
    return taylor_scores(groups, loss, params, of.loss_batches)  # type: ignore[arg-type]


def layer_scores_by_name(name: str, branches: Branches, of: Checked) -> dict[str, float]:
    """Scores of layers; `name` is an option of --layer-score.

    Raises:
      ValueError: if the model lacks what the score needs.
    """
    params, loss = of.model.params, of.model.loss
    if name != "norm" and not of.batches:
        raise ValueError(f"--layer-score {name} needs {_BATCHES}.")
    if name in ("loss", "taylor") and loss is None:
        raise ValueError(f"--layer-score {name} needs {_LOSS}.")
    if name == "norm":
        return branch_norms(branches, params)
    if name == "influence":
        return block_influence(branches, params, of.batches)
    by_loss = loss_increase if name == "loss" else branch_taylor
    return by_loss(branches, loss, params, of.loss_batches)  # type: ignore[arg-type]
