"""Attacks by the server, and broadcasts that send participants different models."""
