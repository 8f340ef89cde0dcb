"""Labelled data sets: one file per layout as its users download it, behind the one contract in `contract.py`."""
