"""The encoder: sentences in, vectors out."""
