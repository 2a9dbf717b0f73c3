"""Figures, pages and tables of all reports."""
