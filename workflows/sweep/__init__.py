"""What tune.py is made of."""
