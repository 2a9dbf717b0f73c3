"""Attacks on a trained model."""
