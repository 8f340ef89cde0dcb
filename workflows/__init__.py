"""The verbs: scripts that a user runs, and the thin Ray shells that they share."""
