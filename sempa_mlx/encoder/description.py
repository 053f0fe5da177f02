"""What made a vector, in words for files and as a key that tells unlike vectors apart."""

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from sempa_mlx.data.templates import EmbeddingTemplate
from sempa_mlx.encoder.interventions import Parameters
from sempa_mlx.encoder.methods import Method
from sempa_mlx.encoder.settings import FORMAT, EncoderSettings
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.lora import adapter_fingerprint
from sempa_mlx.runtime import dtype_name


def describe(
    loaded: LoadedModel,
    method: Method,
    parameters: Parameters,
    settings: EncoderSettings,
    dim: int,
) -> dict[str, Any]:
    """Return what makes finished vectors, as `encoder.json` and the sidecars of files hold it."""
    first, *others = map(_describe_template, method.templates)
    return {
        "format": FORMAT,
        **asdict(replace(settings, post=None)),
        **asdict(parameters),
        "post": None if settings.post is None else settings.post.describe(),
        "num_blocks": len(loaded.model.layers),
        "pooling": method.pooling,
        "template": first,
        "auxiliary_templates": others,
        "dtype": dtype_name(loaded.dtype),
        "dim": dim,
        "model": {
            "name": loaded.location.reference,
            "revision": loaded.location.revision,
            "fingerprint": loaded.fingerprint,
            "setup": loaded.setup,
        },
    }


def _describe_template(template: EmbeddingTemplate) -> dict[str, Any]:
    """Return a template as `encoder.json` holds it."""
    return {
        "name": template.name,
        "head": template.head,
        "prefix": template.prefix,
        "suffix": template.suffix,
        "twice": template.twice,
        "clean": template.clean,
        "fingerprint": template.fingerprint,
    }


def vectors_key(
    loaded: LoadedModel, method: Method, parameters: Parameters, settings: EncoderSettings
) -> str:
    """Return 16 hex digits for what makes vectors as they leave the model.

    That is: the base's weights, settings and tokenizer, the adapter, its scale, prompts, pooling,
    truncation and the method's parameters. Precision does not count, nor what happens to the
    vectors later.
    """
    scale, strength = float(settings.adapter_scale), parameters.strength
    adapter = adapter_fingerprint(loaded.model) if scale else None
    parts = [
        [loaded.fingerprint, loaded.setup],
        [adapter, scale if adapter else 0],
        [template.fingerprint for template in method.templates],
        [method.name, method.pooling, settings.max_tokens],
        [
            parameters.index(len(loaded.model.layers)),
            parameters.block,
            None if strength is None else float(strength),
        ],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
