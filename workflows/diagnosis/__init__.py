"""What doctor.py is made of."""
