"""Training without Ray: the loop, its optimiser, validation, and the count of what was trained."""
