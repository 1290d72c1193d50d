"""Past the study: one small network with a recipe of its own, and how each ingredient was judged."""
