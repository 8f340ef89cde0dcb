"""Teachers: anything that turns uint8 tiles into named responses. Read `contract.py` first, then `registry.py`."""
