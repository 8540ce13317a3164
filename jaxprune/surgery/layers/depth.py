"""Which layers are left: the numbers to build a model of fewer layers with."""

from __future__ import annotations

import os.path
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jaxprune.surgery.inference.model import KeptAxes
from jaxprune.surgery.layers.names import is_below

_NUMBERED = re.compile(r"(.*?)(\d+)")


def layers_left(
    shapes: Mapping[str, tuple[int, ...]], kept: KeptAxes, gone: Collection[str], removed: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Stack of layers -> the numbers of those that are left, of the stacks that `depths` has."""
    return {stack: left for stack, (_, left) in depths(shapes, kept, gone, removed).items()}


def depths(
    shapes: Mapping[str, tuple[int, ...]], kept: KeptAxes, gone: Collection[str], removed: Sequence[str]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Stack of layers -> how many there were and the numbers of those that are left, if it loses a whole layer.

    A stack is a module whose name ends in a number, with `*` for it, or the module that holds stacked leaves.

    Args:
      shapes: path -> shape of the full parameter.
      kept: path -> a mask for each axis.
      gone: paths of removed parameters.
      removed: names of the branches that are left out.
    """
    full: dict[str, set[int]] = {}
    left: dict[str, set[int]] = {}
    for path in shapes:
        names = path.split("/")
        for depth, name in enumerate(names[:-1]):
            found = _NUMBERED.fullmatch(name)
            if found:
                stack = "/".join([*names[:depth], f"{found[1]}*"])
                full.setdefault(stack, set()).add(int(found[2]))
                module = "/".join(names[: depth + 1])
                if path not in gone or not any(is_below(name, module) for name in removed):
                    left.setdefault(stack, set()).add(int(found[2]))
    out = {
        s: (len(numbers), tuple(sorted(left.get(s, ()))))
        for s, numbers in full.items()
        if left.get(s) != numbers
    }
    of_mask: dict[tuple[int, ...], list[str]] = {}
    for path, masks in kept.items():
        if masks and masks[0] is not None:
            of_mask.setdefault(tuple(np.flatnonzero(masks[0]).tolist()), []).append(path)
    for numbers, paths in of_mask.items():
        out[os.path.commonpath(paths) or paths[0]] = shapes[paths[0]][0], numbers
    return out
