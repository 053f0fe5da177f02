"""Make a run's adapter the one that comes with the package, in half precision.

    python benchmarks/release.py RUN

Weights are rounded to float16: half the size. What that changes is measured like any adapter:
`sempa-mlx eval sts --adapter-path RUN --adapter-path smollm2-135m-nli`.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from sempa_mlx.encoder.settings import SETTINGS_FILE
from sempa_mlx.model.lora import CONFIG_FILE, WEIGHTS_FILE
from sempa_mlx.model.released import RELEASED, find_run

LARGEST = 5_000_000  # bytes: it is in every clone and every wheel


def release(run: Path, target: Path) -> int:
    """Write the adapter of `run` into `target`; return the size of its weights in bytes."""
    target.mkdir(parents=True, exist_ok=True)
    weights = load_file(run / WEIGHTS_FILE)
    halves = {name: each.astype(np.float16) for name, each in weights.items()}
    save_file(halves, target / WEIGHTS_FILE, metadata={"format": "mlx"})
    (target / WEIGHTS_FILE).chmod(0o644)  # safetensors leaves it to its owner alone
    for name in (CONFIG_FILE, SETTINGS_FILE):
        shutil.copyfile(run / name, target / name)
    return (target / WEIGHTS_FILE).stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", choices=sorted(RELEASED.values()), default="smollm2-135m-nli")
    arguments = parser.parse_args()
    target = find_run(Path(arguments.name))
    size = release(arguments.run, target)
    print(f"{target}: {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"more than {LARGEST:,} bytes: do not commit it")


if __name__ == "__main__":
    main()
