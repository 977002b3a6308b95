"""Shipped configs; each is found by its file name."""
