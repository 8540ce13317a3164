"""Recipes: named methods, each a few lines that say its structure, score, schedule and initialization."""

from jaxprune.deprecated import renamed_names
from jaxprune.recipes._ac_dc import ac_dc
from jaxprune.recipes._after_training import lamp, minimum_keep, one_shot
from jaxprune.recipes._at_init import grasp, magnitude_at_init, snip, static, synflow
from jaxprune.recipes._dynamic import rigl, set
from jaxprune.recipes._gmp import gmp
from jaxprune.recipes._group_lasso import group_lasso
from jaxprune.recipes._imp import IMPRecipe, imp
from jaxprune.recipes._recipe import Recipe, Task

__all__ = [
    "IMPRecipe",
    "Recipe",
    "Task",
    "ac_dc",
    "gmp",
    "grasp",
    "group_lasso",
    "imp",
    "lamp",
    "magnitude_at_init",
    "minimum_keep",
    "one_shot",
    "rigl",
    "set",
    "snip",
    "static",
    "synflow",
]

__getattr__ = renamed_names(__name__, {"slimming": ("group_lasso", group_lasso)})


def __dir__() -> list[str]:
    return sorted(__all__)
