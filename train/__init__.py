"""Training: the ladder of networks, from a MedMNIST split to checkpoints, members, a bundle and a report."""
