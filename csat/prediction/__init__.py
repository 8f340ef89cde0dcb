"""A trained model over images and slides that are larger than its tile."""
