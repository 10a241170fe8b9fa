"""A debate in the terminal. Read `workers.py` first: it is the tutorial."""
