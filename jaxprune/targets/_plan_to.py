"""A plan that meets a share of the dense model's latency, FLOPs, parameters or bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from jaxprune.params import PyTree
from jaxprune.surgery import ComposedPlan, LayerPlan, Plan
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.layers import Branches
from jaxprune.surgery.planning.alike import Alike
from jaxprune.surgery.scores import Score
from jaxprune.targets.arguments import check_choices, check_inputs, checked_target, parts_of
from jaxprune.targets.measured import with_measured
from jaxprune.targets.networks import Clock, Networks, check_concrete
from jaxprune.targets.search import Search
from jaxprune.targets.units import Choice


def plan_to(
    groups: Groups | Branches | tuple[Groups, Branches],
    fn: Callable,
    weights: PyTree,
    inputs: Any,
    /,
    *,
    latency: float | None = None,
    flops: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
    score: Score | None = None,
    layer_score: Mapping[str, float] | None = None,
    scope: Literal["local", "global"] = "global",
    normalize: Literal["mean"] | None = "mean",
    batch: int | None = None,
    runtime: Literal["jax", "onnx"] | Clock = "jax",
    tolerance: float = 0.05,
    round_to: int | None = None,
    minimum: int = 1,
    exclude: str | Iterable[str] = (),
    only: str | Iterable[str] | None = None,
    alike: Alike = (),
    seconds: float = 0.4,
) -> Plan | LayerPlan | ComposedPlan:
    r"""Plans which units and layers to remove so that a share of the dense model's cost is left.

    What saves the most for the least damage goes first. With scope="global" the next units are those of the group
    with the smallest

    \[ \frac{w_g \, (\ln \sum_{u} s_u - \ln \sum_{u \notin R} s_u)}{\text{cost saved by removing } R}, \]

    where the sums run over the scores of the units that the group still has. The weight \( w_g \) is measured: each
    kind of group (as many units, of the same parameters and FLOPs) is once cut to half its units, and the error of
    the outputs on `inputs` is shared among its groups. With normalize=None the scores themselves are damages.

    Latencies are measured on this machine, the dense network beside each small one: with each kind of groups cut to
    half, and with all of them cut to 3/4, 1/2 and 1/4. The latency of other widths is a polynomial: seconds for each
    kind of product (times its FLOPs), for all other values, and a constant, fitted to these measurements. The plan
    that it gives is measured, and corrected until the latency is within `tolerance`. The other costs are exact; the
    plan is the first one that needs no more.

    With branches the lowest layers by `layer_score` are left out too: for some numbers of layers the widths are
    planned as above, and the plan with the smallest error of the outputs is taken.

    Args:
      groups: what `find_groups` found, or `find_branches` (whole layers alone), or a tuple of both.
      fn: the function that was analysed (positional, as are the next two).
      weights: its parameters, as arrays.
      inputs: all inputs in one tuple, `(ids, mask)`, as arrays; what is no tuple is the only input. Their errors
        decide which groups matter, so let them be data.
      latency, flops, params, bytes: exactly one of them: the share of the dense model's that may be left, in (0, 1).
      score: scores of units, as for `plan_removal`; for branches alone, of layers.
      layer_score: branch name -> score, larger = keep. By default `jp.surgery.block_influence` on `inputs`.
      scope: "local" removes the same share of each group's units.
      normalize: "mean" compares scores within a group alone; None takes scores as damages, comparable between
        groups (an increase of the loss, of `jp.surgery.taylor_scores`).
      batch: the size of the inputs' leading axis when latency is measured; None for that of `inputs`.
      runtime: where latency is measured: "jax", "onnx" (ONNX Runtime, needs `jaxprune[export]`), or a function
        `(fn, params, inputs) -> seconds`, of another machine for example.
      tolerance: how far the latency may be from the one asked for, relative to it.
      round_to: the number of kept units of a group is a multiple of this. None means 8 in groups of at least 32 units
        (odd widths can be slower than the dense one), and 1 in the others.
      minimum, exclude, only, alike: as for `plan_removal`.
      seconds: for which each network, and the dense one beside it, is timed; more where the times differ.

    Returns:
      The plan. `plan.measured` tells what was measured, and printing the plan shows it. If the costs of units are too
      coarse for `tolerance`, it is the plan next below.

    Raises:
      ValueError: if there is not exactly one target in (0, 1), if it can't be reached, if the inputs are fewer or
        more than those that were analysed or have no values, or as in `plan_removal`.
      ImportError: if jax2onnx or onnxruntime is missing for "onnx".

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4)), "head": jnp.ones((4, 2))}
      >>> fn = lambda p, x: (x + jax.nn.relu(x @ p["up"]) @ p["down"]) @ p["head"]
      >>> x = jax.random.normal(jax.random.key(0), (3, 4))
      >>> plan = jp.plan_to(jp.find_groups(fn, params, x), fn, params, x, params=0.6)
      >>> plan.small_shapes["up"], plan.measured.reached
      ((4, 4), 0.5555555555555556)

    References:
      Shen et al., Structural Pruning via Latency-Saliency Knapsack (HALP), 2022, arXiv:2210.06659; Kurtic et al.,
      ZipLM: Inference-Aware Structured Pruning of Language Models, 2023, arXiv:2302.04089 (tables of latencies).
    """
    target, share = checked_target({"latency": latency, "flops": flops, "params": params, "bytes": bytes})
    check_choices(scope, normalize, runtime, tolerance, batch=batch, round_to=round_to, minimum=minimum)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    check_inputs(groups, inputs)
    all_groups, has_units, branches = parts_of(groups, fn, weights, inputs)
    if not has_units and layer_score is None:
        score, layer_score = None, score  # type: ignore[assignment]
    choice = Choice.of(all_groups, exclude, only if has_units else (), alike, minimum, round_to)
    with_errors = has_units and (branches is not None or (scope == "global" and normalize is not None))
    if target == "latency" or with_errors or (branches is not None and layer_score is None):
        check_concrete(weights, inputs)
    runtime_or_none = runtime if target == "latency" else None
    networks = Networks((fn, weights), inputs, runtime_or_none, batch, seconds, with_errors)
    search = Search(
        target, share, networks, choice, branches, score, layer_score, scope, normalize, tolerance
    )
    plan, measured = search.run()
    return with_measured(plan, measured)
