"""One HTML page per verb."""
