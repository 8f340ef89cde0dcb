"""Methods: each turns (tiles, responses) into named loss terms, behind the one contract in `contract.py`."""
