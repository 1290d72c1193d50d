"""What a machine with a GPU is asked to prove: the checks of `prove.py`, and the harness that runs them."""
