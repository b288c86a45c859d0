"""Clients that ask for other versions than the pins, and run with these: `requirements/apart.txt`."""
