"""Exports: what we train, in the forms that other programs read."""
