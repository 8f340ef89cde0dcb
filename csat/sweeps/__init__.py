"""Sweeps without Ray: search space, study, trials, tracking."""
