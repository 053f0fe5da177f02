"""Adapter folders on tiny models, made in no time: nothing is trained."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import adapter_weights, attach, dialled, load_adapter, save_adapter
from tests.tiny import move_adapter

IDS = (1, 5, 9, 30, 77, 100, 3, 8)


def write_run(folder, base, *, size=0.3, scale=1.0, **lora):
    """Put an adapter that changes much on a base and save it; return the folder."""
    settings = LoraConfig(**({"rank": 4, "alpha": 10.0} | lora))
    loaded = load_model(str(base))
    attach(loaded.model, settings, seed=1)
    move_adapter(loaded.model, size)
    loaded.model.eval()
    save_adapter(folder, adapter_weights(loaded.model), settings, loaded)
    encoder = Encoder(loaded, EncoderSettings(max_tokens=64))
    Encoder(loaded, replace(encoder.settings, adapter_scale=scale)).save_settings(folder)
    return folder


def logits_of(base, adapter=None, *, scale=1.0, ids=IDS):
    """Logits of a model, with an adapter at some strength: (tokens, vocabulary) float32."""
    loaded = load_model(str(base), dtype="float32")
    if adapter is not None:
        load_adapter(loaded, Path(adapter))
    with dialled(loaded.model, scale):
        return np.array(loaded.model(mx.array([ids]))[0])


def edit_json(path, **changes):
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
