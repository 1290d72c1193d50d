"""Past the study: one small network that learns from larger ones of its kind, and how each ingredient was judged."""
