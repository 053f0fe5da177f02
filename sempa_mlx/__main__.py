"""The program, in a process of its own: `sempa-mlx` and `python -m sempa_mlx`."""

from sempa_mlx.cli import main
from sempa_mlx.cli_torch import leave_torch_out


def run() -> None:
    """Run the program as quickly as it starts."""
    leave_torch_out()
    main()


if __name__ == "__main__":
    run()
