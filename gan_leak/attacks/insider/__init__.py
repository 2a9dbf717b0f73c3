"""Attacks by a participant."""
