"""Recipes: named methods, each a few lines that say its structure, score, schedule and initialization."""

from jaxprune.recipes.gmp import gmp
from jaxprune.recipes.imp import IMPRecipe, imp
from jaxprune.recipes.recipe import Recipe, Task

__all__ = ["IMPRecipe", "Recipe", "Task", "gmp", "imp"]
