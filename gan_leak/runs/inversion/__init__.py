"""Run of attacks outside the round: on gradients, features and models."""
