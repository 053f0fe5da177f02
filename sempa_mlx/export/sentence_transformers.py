"""An encoder as a folder that sentence-transformers opens, with no code of ours in it.

A prompt there is a prefix; PromptEOL needs words after the sentence too. So the tokenizer itself
does it: its normaliser cleans the sentence and puts the quotes, its post-processor adds the tokens
of the rest, which truncation keeps. Words are tokenised apart only where the model's own tokenizer
splits anyway, and that is checked against ours on every export.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sempa_mlx import runtime
from sempa_mlx.data.preferences import read_preferences
from sempa_mlx.data.sources import training_source
from sempa_mlx.data.templates import EmbeddingTemplate
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.errors import ModelError, Problem, UsageError
from sempa_mlx.export.adapted import NOTHING, check_shared, open_adapted
from sempa_mlx.export.fuse import fuse_layers, fused_config, write_weights
from sempa_mlx.files import new_folder, refuse_filled
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.prompts import encode_one, opening_tokens

POOLINGS = {"last": "lasttoken", "mean": "mean_tokens", "weighted-mean": "weightedmean_tokens"}
METHODS = ("prompteol", "prompteol-icl", "last", "mean", "weighted-mean")
BLANKS = r"[\s\x1c-\x1f]+"  # what str.split() splits at
PLAIN_TYPE = "olmo2"  # a family whose tokenizer transformers takes from the folder
HARD_TEXTS = (
    'He said "no" and left',
    "Is it raining?",
    "'Tis (not) over... yet!",
    "  two  blanks\tand a\nline  ",
    "<|im_end|> and </s> are words here",
    "naïve 猫 \N{GRINNING FACE} 3.14%",
    "A cat sleeps.",
)


@dataclass(frozen=True, slots=True)
class StExport:
    """What was written.

    Attributes:
        folder: what `SentenceTransformer` opens.
        base_name: Hub id of the base, if it has one.
        dtype: precision of the weights.
        scale: the dial that is in the weights.
        dim: length of a vector.
        truncate_dim: what to give `SentenceTransformer` so that it cuts vectors as here.
        renormalize: its `encode` has to be told to make vectors unit length, as it cuts last.
    """

    folder: Path
    base_name: str | None
    dtype: str
    scale: float
    dim: int
    truncate_dim: int | None
    renormalize: bool


def export_sentence_transformers(
    adapter: Path,
    out: Path,
    *,
    model: str | None = None,
    scale: float | None = None,
    dtype: str | None = None,
) -> StExport:
    """Write base and adapter as a folder that `SentenceTransformer(out)` opens.

    Args:
        adapter: run folder; how to embed is what it says.
        out: new folder.
        model: where the base lies now; by default where the run folder says.
        scale: the dial; by default the run folder's own.
        dtype: of the weights: float32 (default), bfloat16 or float16.

    Raises:
        UsageError: method, layer or map have no counterpart there (all of them are told), there is
            no such precision, or `out` is taken.
        ModelError: adapter or base cannot be read, the base has other names in transformers, or its
            tokenizer cannot be made to put the prompt.
        ResourceError: it cannot be written.
    """
    refuse_filled(out)
    precision = dtype or "float32"
    if precision not in runtime.DTYPES:
        known = ", ".join(runtime.DTYPES)
        raise UsageError(Problem(f"--dtype: no precision `{precision}`", fix=known), state=NOTHING)
    opened = open_adapted(adapter, model=model, dtype="float32")
    check_shared(opened.loaded)
    settings = opened.settings
    encoder = Encoder(opened.loaded, replace(settings, post=None, truncate_dim=None))
    _check(encoder, settings)
    tokenizer = text_tokenizer(encoder)
    dial = opened.scale(scale)
    fuse_layers(opened.loaded.model, dial)
    opened.loaded.model.set_dtype(runtime.DTYPES[precision])
    with new_folder(out) as folder:
        write_weights(opened.loaded, fused_config(opened.loaded, precision), folder)
        tokenizer.save_pretrained(folder)
        _write_modules(folder, encoder, _opening_options(folder, encoder))
    cut = settings.truncate_dim
    again = cut is not None and settings.normalize
    return StExport(out, opened.public_name, precision, dial, cut or encoder.dim, cut, again)


def _check(encoder: Encoder, settings: EncoderSettings) -> None:
    """Refuse what no stock module does, all at once."""
    faults = []
    if settings.method not in METHODS:
        what = f"method `{settings.method}` is more than a prompt and a pooling of final states"
        faults.append(Problem(what, fix=f"one of: {', '.join(METHODS)}"))
    elif not encoder.reads_last_layer:
        faults.append(Problem("sentence-transformers reads the final layer only"))
    if settings.post is not None:
        what = f"the fitted {settings.post.kind} has no module there"
        faults.append(Problem(what, fix="--to encoder keeps it"))
    if faults:
        raise UsageError(faults, state=NOTHING)


def text_tokenizer(encoder: Encoder) -> PreTrainedTokenizerFast:
    """Return the model's tokenizer with the method's template inside.

    Raises:
        ModelError: it is no fast tokenizer, or it does not split where the template needs it.
    """
    loaded = encoder.loaded
    own = loaded.tokenizer._tokenizer
    place = loaded.location.name
    if not isinstance(own, PreTrainedTokenizerFast):
        raise ModelError(Problem("its tokenizer has no tokenizer.json", place))
    backend = Tokenizer.from_str(own.backend_tokenizer.to_str())
    (template,) = encoder.method.templates
    if template.prefix or template.suffix:
        _put_template(backend, template, loaded)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=own.eos_token,
        pad_token=own.pad_token or own.eos_token,
        model_max_length=encoder.settings.max_tokens,
        padding_side="right",
        split_special_tokens=True,
    )


def _put_template(backend: Tokenizer, template: EmbeddingTemplate, loaded: LoadedModel) -> None:
    """Clean and quote in the normaliser; add the rest of the template as tokens."""
    # Cut where a blank follows or leads: byte-level tokenizers split there whatever the sentence.
    head, inner_head = re.fullmatch(r"(.*?)( ?[^ ]*)", template.prefix, re.DOTALL).groups()  # type: ignore[union-attr]
    inner_tail, tail = re.fullmatch(r"([^ ]*)(.*)", template.suffix, re.DOTALL).groups()  # type: ignore[union-attr]
    steps = _cleaning() if template.clean else []
    steps += [normalizers.Prepend(inner_head)] if inner_head else []
    steps += [normalizers.Replace(Regex(r"\z"), inner_tail)] if inner_tail else []
    if backend.normalizer is not None:
        steps.append(backend.normalizer)
    backend.normalizer = normalizers.Sequence(steps)
    before = (*opening_tokens(loaded.tokenizer), *_tokens(head, loaded))
    after = _tokens(tail, loaded)
    names = backend.id_to_token
    backend.post_processor = processors.TemplateProcessing(
        single=[*(["<before>"] if before else []), "$A", *(["<after>"] if after else [])],
        special_tokens=[
            {"id": name, "ids": list(ids), "tokens": [str(names(each)) for each in ids]}
            for name, ids in (("<before>", before), ("<after>", after))
            if ids
        ],
    )


def _tokens(text: str, loaded: LoadedModel) -> tuple[int, ...]:
    return encode_one(loaded.tokenizer, text, as_text=True) if text else ()


def _cleaning() -> list[Any]:
    """Return `clean_sentence` as steps of a normaliser."""
    return [
        normalizers.Replace(Regex(BLANKS), " "),
        normalizers.Strip(),
        normalizers.Replace(Regex(r"(?<=[^.?\"'])\z"), "."),
        normalizers.Replace('"', "'"),
        normalizers.Replace(Regex(r"\?\z"), "."),
    ]


def _opening_options(folder: Path, encoder: Encoder) -> dict[str, str]:
    """Return what makes transformers open the tokenizer as written, held against our tokens.

    For some families (Qwen 2) it puts a tokenizer of its own in the place of what the folder says,
    unless a type is named that has none.

    Raises:
        ModelError: no way gives our tokens; a sentence is named.
    """
    records = read_preferences(training_source("demo").path, limit=100).records
    texts = [*HARD_TEXTS, *(record.anchor for record in records)]
    uncut = Encoder(encoder.loaded, replace(encoder.settings, max_tokens=max(map(len, texts)) * 8))
    expected = uncut.tokenize(texts)
    unlike = ""
    for options in ({}, {"tokenizer_type": PLAIN_TYPE}):
        opened = AutoTokenizer.from_pretrained(  # nosec B615
            folder, local_files_only=True, trust_remote_code=False, **options
        )
        found = map(tuple, opened(texts)["input_ids"])
        pairs = zip(texts, expected, found, strict=True)
        unlike = next((text for text, ours, theirs in pairs if ours != theirs), "")
        if not unlike:
            return options
    what = "its tokenizer does not split sentences from the prompt"
    evidence = f"{unlike!r} would have other tokens"
    place = encoder.loaded.location.name
    raise ModelError(Problem(what, place, evidence, "--to fused"), state=NOTHING)


def _write_modules(folder: Path, encoder: Encoder, options: dict[str, str]) -> None:
    """Write the files that say what follows what, in the form that versions 2 to 6 read."""
    kinds = ["Transformer", "Pooling"] + (["Normalize"] if encoder.settings.normalize else [])
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    pooling: dict[str, Any] = {"word_embedding_dimension": encoder.hidden_size}
    pooling |= {f"pooling_mode_{mode}": False for mode in ("cls_token", *POOLINGS.values())}
    pooling[f"pooling_mode_{POOLINGS[encoder.method.pooling]}"] = True
    written = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling | {"include_prompt": True},
        "sentence_bert_config.json": {
            "max_seq_length": encoder.settings.max_tokens,
            "do_lower_case": False,
            **({"tokenizer_args": options} if options else {}),
        },
        "config_sentence_transformers.json": {"prompts": {}, "similarity_fn_name": "cosine"},
    }
    for module in modules[1:]:
        (folder / str(module["path"])).mkdir()
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
