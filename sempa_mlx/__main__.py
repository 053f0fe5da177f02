"""Run as `python -m sempa_mlx`."""

from sempa_mlx.cli import main

main()
