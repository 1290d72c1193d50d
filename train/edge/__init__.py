"""The ablation of the edge network's recipe."""
