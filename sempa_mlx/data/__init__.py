"""Data: text in, records out. No mlx here."""
