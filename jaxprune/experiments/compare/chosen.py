"""The recipes of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxprune import recipes

MAKE: dict[str, Callable[[float], Any]] = {
    "imp": recipes.imp,
    "gmp": recipes.gmp,
    "one-shot": recipes.one_shot,
    "lamp": recipes.lamp,
    "minimum-keep": recipes.minimum_keep,
    "rigl": recipes.rigl,
    "set": recipes.set,
    "static": recipes.static,
    "ac-dc": recipes.ac_dc,
    "magnitude-at-init": recipes.magnitude_at_init,
    "snip": recipes.snip,
    "grasp": recipes.grasp,
    "synflow": recipes.synflow,
    "group-lasso": recipes.group_lasso,
}
