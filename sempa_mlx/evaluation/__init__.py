"""Evaluation: what training did to embeddings and to generation."""
