"""The layers section of `surgery_survey.py`: branches found against those counted by hand, and removal by zeroing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from surgery_survey_models import Make

import jaxprune as jp
from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import flatten_with_paths
from jaxprune.surgery import Branches
from jaxprune.surgery.layers.choosing import plan_of

HEADS = ("model", "branches by hand", "found", "share of parameters", "small function", "names")

# Residual branches by hand: attention and MLP apart, in a scan its steps and the branches of its body.
BY_HAND: dict[str, dict[str, int]] = {
    "own": {
        "residual CNN": 1,
        "transformer": 4,
        "llama": 2,
        "llama, RoPE from iota": 2,
        "scanned layers": 4,
        "padded shortcut": 1,
        "Linen CNN": 1,
        "Linen ViT": 4,
        "Linen LM (remat, scan, tied)": 6,
        "NNX MLP": 2,
        "NNX attention": 2,
        "Equinox attention, GRU": 1,
        "Haiku transformer, LSTM": 2,
    },
    "haiku": {"ResNet v1": 5, "ResNet v2": 5},
    "flaxmodels": {"ResNet-18": 8},
    "equimo": {"ViT": 4, "ViT, registers, SwiGLU, QK norm": 4, "ConvNeXt": 4},
    "transformers": {
        **dict.fromkeys(("bart", "blenderbot", "blenderbot_small", "marian", "mbart", "pegasus"), 10),
        **dict.fromkeys(("t5", "mt5", "longt5"), 10),
        **dict.fromkeys(("albert", "beit", "bert", "big_bird", "bloom", "dinov2", "distilbert", "electra"), 4),
        **dict.fromkeys(("gemma", "gpt2", "gpt_neo", "gptj", "llama", "mistral", "opt", "roberta"), 4),
        **dict.fromkeys(("roberta_prelayernorm", "roformer", "vit", "xglm", "xlm_roberta"), 4),
        "wav2vec2": 5,
        "regnet": 3,
        "resnet": 4,
    },
}  # fmt: skip


def survey_layers(make: Make, by_hand: int) -> tuple[int, float, tuple[str, ...]]:
    """(branches found, largest error, cells of the table)."""
    fn, params, inputs = make()
    branches = jp.find_branches(fn, params, *inputs)
    parts = branches.at("parts")
    names = ", ".join(part.name for part in parts)
    own = [part.name for part in parts if part.size]
    errors = [0.0]
    # Each branch is left out once; neighbours in different halves, so that something is left.
    for half in (own[::2], own[1::2]):
        if half:
            errors.append(error(fn, branches, params, inputs, half))
    largest = (
        f"{max(errors):.1e}" if own else "–"
    )  # weights that layers share can't be zeroed for one of them
    share = branches.removed(own).size / branches.size if own else 0.0
    cells = (str(by_hand), str(len(parts)), f"{share:.0%}", largest, names)
    return len(parts), max(errors), cells


def error(fn: Any, branches: Branches, params: Any, inputs: tuple[Any, ...], names: list[str]) -> float:
    """Largest difference of the small function to the full one with the branches' own parameters at zero.

    What a branch adds is zero then: each ends in a product or a norm of its own. This needs nothing of the analysis
    but the list of these parameters.
    """
    plan = plan_of(branches, names)  # also where the model has one branch, which `plan_layers` would keep
    zeroed = zeros(branches, params, names)
    small = jax.tree.leaves(jax.jit(plan.compact(fn))(plan.shrink(params), *inputs))
    full = jax.tree.leaves(jax.jit(lambda arrays, *x: fn(with_arrays(params, arrays), *x))(zeroed, *inputs))
    return max(
        float(jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), 1e-30))
        for a, b in zip(small, full, strict=True)
    )


def zeros(branches: Branches, params: Any, names: list[str]) -> list[jax.Array]:
    """The arrays of the parameters, with zeros for those that the branches alone use (steps: their slices)."""
    whole = {path for name in names if not branches[name].steps for path in branches[name].params}
    steps: dict[str, list[int]] = {}
    for branch in (branches[name] for name in names):
        for _, step in branch.steps:
            for path in branch.params:
                steps.setdefault(path, []).append(step)
    out = []
    for path, leaf in zip(*flatten_with_paths(params)[:2], strict=True):
        if is_array_leaf(leaf):
            array = np.array(leaf)
            if path in whole and "var" not in path:
                array[...] = 0
            if path in steps:
                array[steps[path]] = 0
            out.append(jnp.asarray(array))
    return out


def with_arrays(params: Any, arrays: list[jax.Array]) -> Any:
    given = iter(arrays)
    return jax.tree.map(lambda x: next(given) if is_array_leaf(x) else x, params)
