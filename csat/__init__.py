"""Distil slow pathology teachers into tiny students. `import csat.model` registers the `csat` models with timm."""
