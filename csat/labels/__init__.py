"""Labelled sets: layouts, parts, decoding, augmentation, targets."""
