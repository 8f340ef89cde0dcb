"""Runs on disk: the folder, the plan of positions, checkpoints, and what is written while training."""
