"""Run sempa-mlx from a checkout: `python cli.py train ...`."""

from sempa_mlx.__main__ import run

run()
