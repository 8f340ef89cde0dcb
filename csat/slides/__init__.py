"""Slides and images: one door to pixels, whatever file they come from."""
