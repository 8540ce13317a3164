"""Blocks: branches of one module that are removed together, such as the attention and the MLP of a layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jaxprune.surgery.layers.names import is_below


def blocks_of(branches: Mapping[str, Sequence[str]], beside: int = 0) -> dict[str, list[str]]:
    """Modules that hold all parameters of two or more branches, and not those of all branches.

    The innermost such module counts. Modules that are all alike but for their number (`stage/block_0`,
    `stage/block_1`) are a stack, not a block.

    Args:
      branches: name -> the paths of the branch's parameters.
      beside: how many other branches the model has.

    Returns:
      Module -> the names of its branches.
    """
    modules = {
        "/".join(path.split("/")[:depth])
        for paths in branches.values()
        for path in paths
        for depth in range(1, path.count("/") + 1)
    }
    found: dict[str, list[str]] = {}
    for module in modules:
        inside = [n for n, paths in branches.items() if paths and all(is_below(p, module) for p in paths)]
        if 2 <= len(inside) < len(branches) + beside:
            found[module] = inside
    innermost = {
        module: names
        for module, names in found.items()
        if not any(set(names) > set(other) for other in found.values())
        and not any(names == other and len(longer) < len(module) for longer, other in found.items())
    }
    return {
        module: innermost[module]
        for module in sorted(innermost, key=lambda m: list(branches).index(innermost[m][0]))
        if not _is_stack(module, [branches[name] for name in innermost[module]])
    }


def _is_stack(module: str, paths: Sequence[Sequence[str]]) -> bool:
    """Whether branches of a module differ in the number of one of its members only."""
    inner = [sorted(path[len(module) + 1 :].split("/", 1) for path in of) for of in paths]
    stems = {tuple(re.sub(r"\d+", "*", name) for name in map("/".join, of)) for of in inner}
    return len(stems) == 1
