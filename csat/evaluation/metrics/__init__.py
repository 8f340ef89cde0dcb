"""Metrics, and their intervals."""
