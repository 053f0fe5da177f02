"""Run sempa-mlx from a checkout: `python cli.py train ...`."""

from sempa_mlx.cli import main

main()
