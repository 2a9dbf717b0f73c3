"""The sections of a reproduction."""
