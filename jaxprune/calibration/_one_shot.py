"""One word for pruning without training: what is handed to `reconstruct` follows from the quality asked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxprune import allocate
from jaxprune.allocate._exact import known_share
from jaxprune.allocation import is_share
from jaxprune.calibration._reconstruct import reconstruct
from jaxprune.calibration.engine.model import CalibrationModel, RowWeights, inputs_of, open_model
from jaxprune.calibration.engine.permuting import Reorderable
from jaxprune.calibration.engine.results import OnLayer
from jaxprune.calibration.engine.shares import is_convolutional
from jaxprune.calibration.engine.splitting import split_batches
from jaxprune.calibration.methods import ADMM, LeastSquares, Method, Refinement, Refit
from jaxprune.params import PyTree, flatten_with_paths, prunable_leaves
from jaxprune.scores import gauss_newton
from jaxprune.structures import Structure, Unstructured

Quality = Literal["fast", "good", "best"]

_MINIMUM = 0.05  # share of its weights that each layer keeps


@dataclasses.dataclass(frozen=True)
class OneShotChoice:
    """What `one_shot` picks; each field but `gradients` and `batches` is an argument of `reconstruct`.

    gradients: number of gradients for the scores that share the sparsity out over the layers and weigh their outputs
    (0: shares are those of `reconstruct` for a number). batches: least number of batches into which the samples are
    cut, as each step of a `Refit` takes one.
    """

    method: Method
    refine: tuple[Refinement | Refit, ...] = ()
    dense_targets: float | None = None
    gradients: int = 0
    batches: int = 1

    def __str__(self) -> str:
        parts = [str(self.method), *map(str, self.refine)]
        if self.dense_targets:
            parts.append(f"dense_targets={self.dense_targets:g}")
        parts.append(
            f"layers and outputs weighed by Gauss-Newton scores of {self.gradients} gradients"
            if self.gradients
            else "shares as of `reconstruct`"
        )
        return ", ".join(parts)


_BATCHES = 64
_LEAST_SQUARES = LeastSquares(10, damping=0.1)  # undamped, a layer fits the noise of the batches
_CHOICES = {
    "fast": OneShotChoice(ADMM()),
    "good": OneShotChoice(ADMM(), (_LEAST_SQUARES,), dense_targets=0.5, gradients=8, batches=_BATCHES),
    "best": OneShotChoice(
        ADMM(),
        # A step for each batch, as rows that are left out cost more than they save, and small steps: the layers have
        # made up for most by then, and more would fit the noise of the batches.
        (_LEAST_SQUARES, Refit(steps=_BATCHES, learning_rate=0.005, dense_targets=1.0)),
        dense_targets=0.5,
        gradients=8,
        batches=_BATCHES,
    ),
}


def one_shot(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    sparsity: Any = None,
    quality: Quality = "good",
    *,
    structure: Structure = Unstructured(),
    loss_fn: Callable[..., Any] | None = None,
    where: PyTree | None = None,
    permute: Reorderable | None = None,
    row_weights: RowWeights | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_choice: Callable[[OneShotChoice], None] | None = None,
    on_layer: OnLayer | None = None,
    progress: bool | None = None,
) -> tuple[PyTree, PyTree]:
    r"""Prunes a model without training or labels, as well as the time asked for allows.

    It picks the arguments of `reconstruct` (the method, targets from the dense model, the training of residual
    branches) and, for the better qualities, shares the sparsity out over the layers: the entries with the smallest
    `scores.gauss_newton`, the change of the outputs of `fn`, are counted in each layer. A convolutional network has the
    shares that `reconstruct` gives it, and N:M has none. What it picks is an `OneShotChoice`, which `on_choice` is
    given before it starts.

    Args:
      fn: function of (params, *inputs). Its outputs are what the pruned model is to keep: hidden states or logits of
        each position, an embedding of each row.
      params: pytree of arrays.
      batches: iterable of batches of the same shape. A batch is a tuple of inputs, or one input. Batches are cut
        along their first axis where the choice asks for more of them and `fn` takes a part.
      sparsity: fraction of all weights to prune, in [0, 1), or a tree like `params` of fractions. None for 0.5, or
        with N:M for the sparsity of the pattern.
      quality: "fast" for one pass of the batches, "good" for targets from the dense model and shares by the outputs,
        "best" for residual branches that are trained too.
      structure: `Unstructured()`, `NM(n, m)`, or `Block((inputs, outputs))`.
      loss_fn: function of (params, *inputs) that returns a scalar, if there is one that needs no more than the inputs,
        such as the loss of a causal model's next tokens. The scores are then of the change of the loss (`fisher`, with
        a batch as a sample), which keeps a language model better than those of its hidden states.
      where: tree of bools (or a prefix of one, or a function that returns it) that selects the weights to prune;
        None for `prunable(params)`.
      permute: groups of `jp.find_groups` for N:M, as in `reconstruct`.
      row_weights: function of the inputs of a batch that returns the weights of the rows, such as the padding mask.
      checkpoint: folder in which a run that was stopped goes on, as in `reconstruct`.
      on_choice: function that is called with the choice, such as `print`.
      on_layer: function that is called with the result of each layer, as in `reconstruct`.
      progress: whether to show a progress bar; None for one if the standard error is a terminal.

    Returns:
      (params, masks), as `reconstruct` returns them.

    Raises:
      ValueError: if `quality` is another word, if `loss_fn` returns no scalar, and as `reconstruct` does.
      TypeError: as `reconstruct` does.

    Warns:
      UserWarning: as `reconstruct` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {"up": jax.random.normal(keys[0], (8, 16)), "down": jax.random.normal(keys[1], (16, 8))}
      >>> fn = lambda p, x: x + jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> batches = [jax.random.normal(keys[2], (64, 8))]
      >>> pruned, masks = jp.one_shot(fn, params, batches, 0.5, "fast", on_choice=print)
      ADMM(rounds=20, ramp=15, rho=1.0, damping=0.1), shares as of `reconstruct`
      >>> jp.sparsity(pruned, masks)
      0.5
    """
    if quality not in _CHOICES:
        raise ValueError(
            f"`quality` must be one of {', '.join(map(repr, get_args(Quality)))}, got {quality!r}."
        )
    inputs = inputs_of(batches, "pad it and pass `row_weights`")
    model = open_model(fn, params, inputs[:1], where, None)
    choice = _CHOICES[quality]
    if structure.fixed_sparsity is not None or is_convolutional(model.program.uses):
        choice = dataclasses.replace(choice, gradients=0)
    if on_choice is not None:
        on_choice(choice)
    inputs = split_batches(fn, params, inputs, choice.batches)
    scores = None
    if choice.gradients:
        sparsity = 0.5 if sparsity is None else sparsity
        sparsity = known_share(sparsity) if is_share(sparsity) else sparsity
        selected = _used(model, params, where)
        some = inputs[:: max(len(inputs) // choice.gradients, 1)][: choice.gradients]
        # The sign of a scalar cancels in the square: of a loss these are Fisher scores.
        minded = fn if loss_fn is None else _scalar(loss_fn)
        scores = gauss_newton(minded, params, some, where=selected, row_weights=row_weights)
        if is_share(sparsity):
            minimum = min(_MINIMUM, (1 - sparsity) / 2)
            sparsity = allocate.from_scores(scores, sparsity, selected, structure, minimum=minimum)
    return reconstruct(
        fn,
        params,
        inputs,
        sparsity,
        structure,
        choice.method,
        refine=choice.refine,
        fisher=scores,
        dense_targets=choice.dense_targets,
        where=where,
        permute=permute,
        row_weights=row_weights,
        checkpoint=checkpoint,
        on_layer=on_layer,
        progress=progress,
    )


def _scalar(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The loss, which raises a ValueError if it is not a scalar."""

    def loss(params: PyTree, *inputs: Any) -> Any:
        value = loss_fn(params, *inputs)
        if jnp.shape(value) != ():
            raise ValueError(
                f"`loss_fn` must return one number, got shape {jnp.shape(value)}. Return the mean over the batch, "
                "without auxiliary outputs."
            )
        return value

    return loss


def _used(model: CalibrationModel, params: PyTree, where: PyTree | None) -> PyTree:
    """The weights of `where` that multiply activations, as a tree of bools: `reconstruct` prunes no other."""
    paths, _, treedef = flatten_with_paths(params)
    chosen = set(prunable_leaves(params, where)) - {i for i, path in enumerate(paths) if path in model.lost}
    return jax.tree.unflatten(treedef, [i in chosen for i in range(len(paths))])
