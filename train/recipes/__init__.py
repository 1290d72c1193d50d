"""Recipes: how a stage is trained. One class per recipe; `train.stages` names the recipe of each stage."""

from train.recipes.base import Recipe
from train.recipes.edge import EdgeRecipe
from train.recipes.reference import ReferenceRecipe

__all__ = ["EdgeRecipe", "Recipe", "ReferenceRecipe"]
