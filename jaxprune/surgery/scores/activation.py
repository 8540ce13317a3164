"""Magnitude of a unit's activations over calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree
from jaxprune.surgery.evaluation.observing import Totals, observed
from jaxprune.surgery.groups import Groups, find_groups
from jaxprune.surgery.inference.axes import leaves_of, size_of
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.kept import collect
from jaxprune.surgery.inference.rules import RULES
from jaxprune.surgery.scores._unit_scores import UnitScores
from jaxprune.surgery.scores.entries import arrays_of

_CONTRACTIONS = ("dot_general", "ragged_dot_general", "conv_general_dilated")


def activation_scores(
    groups: Groups,
    params: PyTree,
    batches: Iterable[Any],
    statistic: Literal["mean_abs", "rms"] = "mean_abs",
) -> UnitScores:
    r"""Mean absolute (or root mean square) activation of each unit: \( s_i = \operatorname{mean} |a_i| \).

    The activations of a unit are the numbers that matrix products and convolutions sum over. Whenever a product
    sums over the units of a group (whatever the framework, the layer or the dimension numbers), the activations of
    unit i are its entries in the operands that depend on the inputs. The mean is over all of them: samples,
    positions, entries of one unit (the head_dim of a head), places where the unit is used, steps of scans
    and calls of shared layers. So hidden units are measured after their nonlinearity, heads by their outputs,
    head_dims of queries and keys by both, and a residual stream after its norms, wherever a projection reads it.
    Sums inside `lax.while_loop` are not measured.

    Args:
      groups: the groups that `find_groups` returned, at any batch size.
      params: the parameters that were analysed, as arrays.
      batches: tuples of inputs `(x, ...)` of the analysed function; a batch that is not a tuple is its only input.
        Shapes may differ from the shapes at which the groups were found, and from batch to batch: the function is
        then analysed at each of these shapes.
      statistic: "mean_abs" or "rms".

    Returns:
      A float64 array of shape (group.size,) for each group that a matrix product or convolution of
      activations sums over. `plan_removal` requires that the other groups are excluded.

    Raises:
      ValueError: if there is no batch, or if the function does not have these groups at the shapes of a batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[1.0, -1.0]]), "down": jnp.array([[3.0], [0.5]])}
      >>> fn = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> groups = jp.find_groups(fn, params, jnp.ones((2, 1)))
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[2.0], [-2.0]])]
      >>> jp.surgery.activation_scores(groups, params, batches)["down[0]"]  # relu of (1, 3, 2, -2), and of minus these
      array([1.5, 0.5])

    References:
      Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2016,
      arXiv:1611.06440 (the mean activation).
    """
    if statistic not in ("mean_abs", "rms"):
        raise ValueError(f"`statistic` must be 'mean_abs' or 'rms', got {statistic!r}.")
    arrays_of(groups, params)  # checks them
    weights = [x for x in jax.tree.leaves(params) if is_array_leaf(x)]
    runs: dict[Any, Callable[..., Totals]] = {}
    sums = {group.name: np.zeros(group.size) for group in groups}
    counts = dict.fromkeys(sums, 0.0)
    for batch in batches:
        inputs = [jnp.asarray(x) for x in jax.tree.leaves(batch) if is_array_leaf(x)]
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        if shapes not in runs:
            runs[shapes] = _totals(groups_at(groups, params, batch, shapes), len(weights), statistic)
        for name, (total, count) in runs[shapes](weights, inputs).items():
            if name in sums:
                sums[name] += np.asarray(total, np.float64)
                counts[name] += float(count)
    means = {name: sums[name] / counts[name] for name in sums if counts[name]}
    if not means and len(groups):
        raise ValueError(
            "`batches` has no batch, or no matrix product or convolution of the model sums over units."
        )
    return UnitScores({name: np.sqrt(x) if statistic == "rms" else x for name, x in means.items()})


def groups_at(groups: Groups, params: PyTree, batch: Any, shapes: tuple[Any, ...]) -> Groups:
    """The groups that are found at a batch of these shapes and dtypes."""
    traced = groups.model.traced
    avals = [v.aval for v in traced.jaxpr.invars[len(traced.consts) + len(traced.paths) :]]
    if shapes == tuple((getattr(a, "shape", ()), getattr(a, "dtype", None)) for a in avals):
        return groups
    inputs = batch if isinstance(batch, tuple) else (batch,)
    there = find_groups(cast(Callable, groups.fn), params, *inputs, state=groups.state)
    sizes = {group.name: group.size for group in there}
    lost = [group.name for group in groups if sizes.get(group.name) != group.size]
    if lost:
        raise ValueError(
            f"`batches` have inputs of shapes {[shape for shape, _ in shapes]}, at which `fn` has no group "
            f"{lost[0]!r}. Call `find_groups` with a calibration batch."
        )
    return there


def _totals(groups: Groups, n_weights: int, statistic: str) -> Callable[..., Totals]:
    """Makes a function of (weights, inputs) that returns, for each group, the sum and number of its activations."""
    model = groups.model
    names = {group.atom: group.name for group in groups}
    fixed = len(model.traced.consts) + n_weights
    flags = [i >= fixed for i in range(len(model.frame.jaxpr.invars))]
    zeros = {group.name: (jnp.zeros(group.size, jnp.float32), jnp.zeros((), jnp.float32)) for group in groups}

    def observe(frame: Frame, eqn: JaxprEqn, operands: Sequence[Any], of_inputs: Sequence[bool]) -> Totals:
        found: Totals = {}
        reduces = RULES[eqn.primitive.name].reduces if eqn.primitive.name in _CONTRACTIONS else None
        for i, dims, _ in reduces(eqn, frame.ins(eqn)) if reduces else ():
            for dim in dims if of_inputs[i] and i < 2 else ():
                axis = frame.ins(eqn)[i][dim]
                for atom in dict.fromkeys(leaves_of(axis)):
                    if atom in names:
                        both = _summed(operands[i], dim, axis, atom, statistic)
                        before = found.get(names[atom], (0, 0))
                        found[names[atom]] = tuple(a + b for a, b in zip(before, both, strict=True))
        return found

    @jax.jit
    def run(weights, inputs):
        return observed(model.frame, [*model.traced.consts, *weights, *inputs], flags, zeros, observe)[1]

    return run


def _summed(array: Any, dim: int, axis: Any, atom: Any, statistic: str) -> tuple[Any, float]:
    """The sum over all entries of each unit, and the number of these entries."""
    values = jnp.abs(jnp.asarray(array)).astype(jnp.float32)
    values = values**2 if statistic == "rms" else values
    along = values.sum(axis=[d for d in range(values.ndim) if d != dim])
    per_entry = values.size // max(size_of(axis), 1)
    places = collect(axis, np.ones(size_of(axis)), atom)
    return collect(axis, along, atom), float(places[0]) * per_entry
