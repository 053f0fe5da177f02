"""Demonstration data written for this project: triplets, scored pairs, sentences."""
