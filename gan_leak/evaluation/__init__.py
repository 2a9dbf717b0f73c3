"""Measures of leakage: a judge, references, scores and criteria."""
