"""Attacks by the server, one a file, and ways to send participants different models."""
