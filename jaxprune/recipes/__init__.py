"""Recipes: pruning methods as combinations of structure, scoring, scheduling and initialization; the named ones."""

from jaxprune.deprecated import renamed_names
from jaxprune.recipes._after_training import ac_dc, gmp, group_lasso, imp, lamp, minimum_keep, one_shot
from jaxprune.recipes._experiment import SingleTraining
from jaxprune.recipes._from_the_start import BeforeTraining, Moving
from jaxprune.recipes._in_rounds import Recursive
from jaxprune.recipes._recipe import Recipe
from jaxprune.recipes._scoring import OfMeanKept, Scoring, Task
from jaxprune.recipes._shrinking import ShrinkingTrainings
from jaxprune.recipes._sparse_training import grasp, magnitude_at_init, rigl, set, snip, static, synflow
from jaxprune.recipes._while_training import Alternating, Gradual, OneShot

__all__ = [
    "Alternating",
    "BeforeTraining",
    "Gradual",
    "Moving",
    "OfMeanKept",
    "OneShot",
    "Recipe",
    "Recursive",
    "Scoring",
    "ShrinkingTrainings",
    "SingleTraining",
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

__getattr__ = renamed_names(
    __name__, {"slimming": ("group_lasso", group_lasso), "IMPRecipe": ("Recipe", Recipe)}
)


def __dir__() -> list[str]:
    return sorted(__all__)
