"""Which functions of mlx-lm's models have a faster twin on a CPU, and putting it in their place."""

import sys

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import activations, base

from sempa_mlx import runtime
from sempa_mlx.model.cpu_attention import attention
from sempa_mlx.model.cpu_kernels import swiglu

TWINS = {
    "swiglu": (activations.swiglu, swiglu),
    "scaled_dot_product_attention": (base.scaled_dot_product_attention, attention),
}


def use_fast_functions(model: nn.Module, dtype: mx.Dtype) -> list[str]:
    """Let a model's own code find the faster functions, on a CPU in float32; return their names.

    Names in the module of the model's class are replaced where they stand for mlx-lm's functions.
    Models of other kinds, other devices and other precisions keep those.
    """
    if runtime.is_gpu() or dtype != mx.float32:
        return []
    home = vars(sys.modules[type(model).__module__])
    found = [name for name, twins in TWINS.items() if home.get(name) in twins]
    home.update((name, TWINS[name][1]) for name in found)
    return found
