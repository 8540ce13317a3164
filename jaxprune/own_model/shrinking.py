"""What `jaxprune shrink` and `jaxprune export` do between the model and its files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optax

from jaxprune.delivery.report import Exported
from jaxprune.healing import distill
from jaxprune.own_model.checking import Checked, compiled
from jaxprune.own_model.files import write_files
from jaxprune.own_model.loading import running
from jaxprune.own_model.removal import Small, removed
from jaxprune.params import PyTree

Say = Callable[[str], None]

SUMMARY = "summary.json"


def shrink(of: Checked, name: str, options: Any, place: Path, say: Say) -> dict[str, Any]:
    """Makes a small model, measures it beside the dense one and writes its files.

    Args:
      of: the model.
      name: how the user named it.
      options: those of the command.
      place: the folder of the files.
      say: tells what is done next.

    Returns:
      What the summary tells, as JSON can hold it.

    Raises:
      ValueError, ImportError: as `removed` and `write_files` do.
    """
    model = of.model
    small = removed(of, options, say)
    scores = {"dense": _evaluated(of, model.fn, model.params, "dense", say)}
    scores["small"] = _evaluated(of, small.fn, small.params, "small", say)
    params = small.params
    if options.distill:
        say(f"distilling for {options.distill} steps")
        params = _distilled(small, of, options)
        scores["distilled"] = _evaluated(of, small.fn, params, "distilled", say)
    reference = (model.fn, model.params)
    done, left_out = write_files(place, small.fn, params, model.inputs, options, say, small.plan, reference)
    told = {
        "command": "shrink",
        "model": name,
        "asked": _asked(options),
        "scores": small.scores,
        "compensated": small.compensated,
        "distilled": options.distill,
        "verified": small.verified,
        "measured": _measured(small.units),
        "layers_removed": list(small.layers.removed) if small.layers else [],
        "dimensions": _dimensions(small.plan),
    }
    return _written(place, told, scores, done, left_out)


def export_as_it_is(of: Checked, name: str, options: Any, place: Path, say: Say) -> dict[str, Any]:
    """Writes the files of a model that is exported without pruning."""
    model = of.model
    scores = {"dense": _evaluated(of, model.fn, model.params, "dense", say)}
    done, left_out = write_files(place, model.fn, model.params, model.inputs, options, say)
    return _written(place, {"command": "export", "model": name}, scores, done, left_out)


def _written(
    place: Path, told: dict[str, Any], scores: dict[str, Any], done: Exported, left_out: dict[str, str]
) -> dict[str, Any]:
    report = {key: value for key, value in done.report.items() if key not in ("format", "removed")}
    found = {**told, "evaluation": scores, "left_out": left_out, **report}
    (place / SUMMARY).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return found


def _asked(options: Any) -> dict[str, Any]:
    """The shares that were asked for, of what stays."""
    asked = {} if options.budget is None else {options.budget[0]: options.budget[1]}
    return {**asked, **({"layers": options.layers} if options.layers else {})}


def _measured(plan: Any) -> str | None:
    """The latency that was measured for a plan, None without one."""
    found = getattr(plan, "measured", None)
    return str(found).partition("\n")[0] if found is not None and found.target == "latency" else None


def _dimensions(plan: Any) -> dict[str, dict[str, list[int]]]:
    """Axis or stack of layers -> its size before and after, as products: of the axes with the same units the first."""
    found = plan.dimensions()
    firsts: dict[Any, str] = {}
    for axis in found.axes:
        firsts.setdefault(found.together.get(axis, axis), axis)
    changed = {**found.layers, **{axis: found.axes[axis] for axis in firsts.values()}}
    return {
        name: {"before": list(d.before), "after": list(d.after)}
        for name, d in changed.items()
        if d.before != d.after
    }


def _distilled(small: Small, of: Checked, options: Any) -> PyTree:
    rate = optax.cosine_decay_schedule(options.learning_rate, options.distill)
    return distill(
        small.fn,
        small.params,
        of.model.fn,
        of.model.params,
        of.batches,
        optax.adam(rate),
        steps=options.distill,
        loss=options.distill_loss,
    )


def _evaluated(
    of: Checked, fn: Callable[..., Any], params: PyTree, which: str, say: Say
) -> dict[str, float | None]:
    """The numbers of the user's evaluation, by name; none without one. What is no finite number is None."""
    evaluate = of.model.evaluate
    if evaluate is None:
        return {}
    say(f"evaluating the {which} model")
    what = f"`evaluate` failed for the {which} model"
    found = running(what, of.place, evaluate, compiled(fn, params), params)
    named = found if isinstance(found, Mapping) else {"evaluation": found}
    try:
        numbers = {str(name): float(value) for name, value in named.items()}
    except (TypeError, ValueError):
        raise ValueError(
            f"`evaluate` must return a number or a dict of numbers, got {str(found)[:100]!r}."
        ) from None
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
