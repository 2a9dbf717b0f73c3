"""Runs of federations whose server attacks its clients."""
