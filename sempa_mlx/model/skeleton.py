"""A model without its weights: what a run will cost can be told from shapes and tokens.

mlx computes nothing before it is asked to, so a model is built whole while no weight is read or
drawn.
"""

import json
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import TokenizerWrapper

from sempa_mlx import runtime
from sempa_mlx.config import LoraConfig, ModelConfig
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.adapter_layers import choose_linears, is_adaptable, linear_dims
from sempa_mlx.model.gguf import model_config
from sempa_mlx.model.gguf_shapes import read_shapes
from sempa_mlx.model.gguf_tokenizer import build_tokenizer
from sempa_mlx.model.head import hidden_size, text_model
from sempa_mlx.model.load import LoadedModel, load_folder, locate
from sempa_mlx.model.lora import attach


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides memory and time.

    `matrices` counts the weights of all blocks' linear layers; `widths` adds up their inputs and
    outputs, `widest` those of the largest block; `trained` and `total` count weights; `loaded_gb`
    is what the base takes in memory.
    """

    hidden: int
    vocabulary: int
    num_blocks: int
    matrices: int
    widths: int
    widest: int
    trained: int
    total: int
    loaded_gb: float


def load_skeleton(settings: ModelConfig) -> LoadedModel:
    """Return a model whose weights must not be used, with its real tokenizer.

    Raises:
        ModelError: the model cannot be found or built.
    """
    location = locate(settings.name, settings.revision, weights=False)
    if location.path.suffix == ".gguf":
        header = read_shapes(location.path)
        try:
            model: nn.Module = llama.Model(llama.ModelArgs.from_dict(model_config(header)))
        except (KeyError, ValueError) as error:
            what = f"its metadata does not size a model ({error})"
            raise ModelError(Problem(what, str(location.path))) from error
        tokenizer = TokenizerWrapper(build_tokenizer(header.metadata))
    else:
        model, tokenizer, _ = load_folder(location.path, weights=False)
    dtype = runtime.resolve_dtype(settings.dtype)
    return LoadedModel(model, tokenizer, location, dtype, fingerprint="")


def measure_shape(loaded: LoadedModel, lora: LoraConfig, *, packed: bool) -> Shape | None:
    """Count a skeleton's weights and put the adapter on; None for mixtures of experts.

    Args:
        loaded: a skeleton.
        lora: the adapter.
        packed: whether quantised weights stay packed in memory.

    Raises:
        ModelError: the settings name layers that are not there.
    """
    model = loaded.model
    blocks: list[nn.Module] = model.layers
    if any(value.ndim > 2 for block in blocks for _, value in tree_flatten(block.parameters())):
        return None
    dims = [
        [linear_dims(module) for _, module in block.named_modules() if is_adaptable(module)]
        for block in blocks
    ]
    widths = [sum(map(sum, block)) for block in dims]
    total = sum(_num_weights(module) for _, module in model.named_modules())
    # DoRA's lengths of rows would need the weights themselves.
    lengths = sum(
        linear_dims(linear)[1] for linear in choose_linears(model, lora.layers, lora.keys).values()
    )
    attach(model, lora.model_copy(update={"kind": "lora"}), seed=0)
    trained = sum(value.size for _, value in tree_flatten(model.trainable_parameters()))
    return Shape(
        hidden=hidden_size(model),
        vocabulary=text_model(model).model.embed_tokens.weight.shape[0],
        num_blocks=len(blocks),
        matrices=sum(inputs * outputs for block in dims for inputs, outputs in block),
        widths=sum(widths),
        widest=max(widths),
        trained=trained + (lengths if lora.kind == "dora" else 0),
        total=total,
        loaded_gb=total * _bytes_a_weight(loaded, packed=packed) / runtime.GB,
    )


def _num_weights(module: nn.Module) -> int:
    """Count a module's own weights, as many as there are when unpacked."""
    if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
        return int(module.weight.size * 32 // module.bits)
    own = (value for name, value in module.items() if not name.startswith("_"))
    return sum(value.size for value in own if isinstance(value, mx.array))


def _bytes_a_weight(loaded: LoadedModel, *, packed: bool) -> float:
    path = loaded.location.path
    if packed and path.suffix == ".gguf":
        total = sum(_num_weights(module) for _, module in loaded.model.named_modules())
        return path.stat().st_size / total
    if packed:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if quantised := config.get("quantization"):
            # A scale and a bias of 16 bits for each group.
            return float(quantised["bits"]) / 8 + 4 / float(quantised["group_size"])
    return float(loaded.dtype.size)
