"""sempa-mlx: one small language model that both generates and embeds (SemPA on MLX)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sempa_mlx.blas import preload_blas_before_mlx

__version__ = "0.1.0"
__all__ = [
    "Encoder",
    "Trained",
    "__version__",
    "evaluate_sts",
    "load_config",
    "paraphrase",
    "train",
]

preload_blas_before_mlx()  # without it mlx is 40 times slower on Linux CPUs

if TYPE_CHECKING:
    from sempa_mlx.api import Trained, evaluate_sts, load_config, paraphrase, train
    from sempa_mlx.encoder.encoder import Encoder

_LAZY = {
    "Encoder": "sempa_mlx.encoder.encoder",
    "Trained": "sempa_mlx.api",
    "evaluate_sts": "sempa_mlx.api",
    "load_config": "sempa_mlx.api",
    "paraphrase": "sempa_mlx.api",
    "train": "sempa_mlx.api",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562 hook
    """Import public names on first use, so that `import sempa_mlx` brings in no mlx."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
