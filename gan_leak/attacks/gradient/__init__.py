"""Attacks on one gradient or update."""
