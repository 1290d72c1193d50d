"""Recipes: how a stage is trained. One class per recipe; `train.stages` names the recipe of each stage."""

from train.recipes.base import Recipe
from train.recipes.edge import EDGE_RECIPE, EdgeRecipe
from train.recipes.reference import ReferenceRecipe

__all__ = ["EDGE_RECIPE", "EdgeRecipe", "Recipe", "ReferenceRecipe"]
