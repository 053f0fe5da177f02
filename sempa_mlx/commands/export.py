"""`sempa-mlx export`: one function a form, and the options that each of them takes."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sempa_mlx.console import Console
from sempa_mlx.errors import Problem, UsageError

NOTHING = "nothing was written"
ADAPTER_FORMS = ("mlx", "peft", "fused", "encoder", "sentence-transformers")
_LOADING = ADAPTER_FORMS[1:]  # the others need no model in memory
_OPTIONS = {  # the forms that take an option
    "--coder": ("sparse-autoencoder",),
    "--model": _LOADING,
    "--adapter-scale": _LOADING,
    "--dtype": ("fused", "sentence-transformers"),
    "--q-bits": ("fused",),
    "--q-group-size": ("fused",),
    "--max-error": ("fused",),
    "--base": ADAPTER_FORMS,
    "--push": ADAPTER_FORMS,
    "--private": ADAPTER_FORMS,
}


@dataclass(frozen=True, slots=True)
class FuseOptions:
    """How a fused model is stored; None leaves it to the export."""

    dtype: str | None = None
    bits: int | None = None
    group_size: int | None = None
    max_error: float | None = None


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to write where; None leaves it to defaults and the run folder."""

    to: str
    out: Path
    adapter_path: Path
    coder: Path | None = None
    model: str | None = None
    base: str | None = None
    adapter_scale: float | None = None
    fuse: FuseOptions = field(default_factory=FuseOptions)
    push: str | None = None
    private: bool = False

    def faults(self) -> list[Problem]:
        """List options that the form does not take, and those that miss another one."""
        given = {
            "--coder": self.coder,
            "--model": self.model,
            "--adapter-scale": self.adapter_scale,
            "--dtype": self.fuse.dtype,
            "--q-bits": self.fuse.bits,
            "--q-group-size": self.fuse.group_size,
            "--max-error": self.fuse.max_error,
            "--base": self.base,
            "--push": self.push,
            "--private": self.private or None,
        }
        found = [
            Problem(f"{option} goes with --to {', '.join(_OPTIONS[option])}")
            for option, value in given.items()
            if value is not None and self.to not in _OPTIONS[option]
        ]
        if self.private and self.push is None:
            found.append(Problem("--private goes with --push"))
        if self.to == "sparse-autoencoder" and self.coder is None:
            found.append(Problem("--to sparse-autoencoder needs a coder", fix="add --coder FILE"))
        return found


@dataclass(frozen=True, slots=True)
class Exported:
    """What a form wrote.

    Attributes:
        folder: the new folder.
        document: for `--json`.
        hint: how to use it.
        scale: strength of the adapter in it.
        base: Hub id of the base, if it is known.
        model: what mlx-lm opens as base.
        notes: what else to say, also in a model card.
        truncate_dim: length that whoever opens it has to cut vectors to, if they are cut.
        renormalize: they then have to be made unit length again.
    """

    folder: Path
    document: dict[str, Any]
    hint: str
    scale: float = 1.0
    base: str | None = None
    model: str = ""
    notes: tuple[str, ...] = ()
    truncate_dim: int | None = None
    renormalize: bool = False


def run_export(console: Console, request: ExportRequest) -> None:
    """Write one form, say how to use it, and push it if that is asked for."""
    from sempa_mlx.commands.push import check_push, push_export

    if faults := request.faults():
        raise UsageError(faults, state=NOTHING)
    if request.push is not None:
        request = replace(request, base=check_push(request))
    source = request.coder or request.adapter_path
    with console.working(f"exporting {source}"):
        exported = _FORMS[request.to](request)
    for note in exported.notes:
        console.say(note)
    document = exported.document
    if request.push is not None:
        document |= {"url": push_export(console, request, exported)}
    console.result(str(exported.folder))
    console.document(document)
    console.say(f"\nuse it:  {exported.hint}")


def _to_mlx(request: ExportRequest) -> Exported:
    from sempa_mlx.export.mlx import export_mlx

    found = export_mlx(request.adapter_path, request.out, base=request.base)
    model = shlex.quote(found.model)
    command = f"python -m mlx_lm generate --model {model} --adapter-path {_quoted(found.adapter)}"
    return Exported(
        found.adapter,
        {"adapter_path": str(found.adapter), "model": found.model},
        f"{command} --prompt 'Hello'",
        base=found.base_name,
        model=f"adapter/{found.inside}" if found.inside else found.base_name or "BASE",
    )


def _to_peft(request: ExportRequest) -> Exported:
    from sempa_mlx.export.peft import export_peft

    found = export_peft(
        *(request.adapter_path, request.out),
        model=request.model,
        base=request.base,
        scale=request.adapter_scale,
    )
    notes = [f"adapter scale {found.scale:g}, in lora_alpha; base {found.base}"]
    if found.is_from_gguf:
        notes.append(
            "The adapter was trained on the quantised weights of a GGUF file; on those of "
            f"{found.base} its vectors differ as far as the weights do."
        )
    return Exported(
        found.folder,
        {"path": str(found.folder), "base": found.base, "adapter_scale": found.scale},
        f"peft.AutoPeftModelForCausalLM.from_pretrained({str(found.folder)!r})",
        scale=found.scale,
        base=found.base_name,
        notes=tuple(notes),
    )


def _to_fused(request: ExportRequest) -> Exported:
    from sempa_mlx.export.fuse import FusePlan, export_fused
    from sempa_mlx.export.logit_check import percent

    options = request.fuse
    found = export_fused(
        *(request.adapter_path, request.out),
        FusePlan(options.dtype or "auto", options.bits, options.group_size, options.max_error),
        model=request.model,
        scale=request.adapter_scale,
    )
    check = found.check
    verified = (
        f"Verified on packaged sentences, against base and adapter in float32: {check}; up to "
        f"{percent(found.bound)} is let through."
    )
    return Exported(
        found.folder,
        {
            "path": str(found.folder),
            "dtype": found.dtype,
            "adapter_scale": found.scale,
            "verified": {**asdict(check), "bound": found.bound},
        },
        f"python -m mlx_lm generate --model {_quoted(found.folder)} --prompt 'Hello'",
        scale=found.scale,
        base=request.base or found.base_name,
        notes=(f"{found.dtype}, adapter scale {found.scale:g}", verified),
    )


def _to_encoder(request: ExportRequest) -> Exported:
    from sempa_mlx.export.encoder_folder import export_encoder

    found = export_encoder(
        *(request.adapter_path, request.out), model=request.model, scale=request.adapter_scale
    )
    return Exported(
        found.folder,
        {"path": str(found.folder), "dim": found.dim, "adapter_scale": found.scale},
        f"sempa-mlx embed FILE --model {_quoted(found.folder)}",
        scale=found.scale,
        base=request.base or found.base_name,
    )


def _to_sentence_transformers(request: ExportRequest) -> Exported:
    from sempa_mlx.export.sentence_transformers import export_sentence_transformers

    found = export_sentence_transformers(
        *(request.adapter_path, request.out),
        model=request.model,
        scale=request.adapter_scale,
        dtype=request.fuse.dtype,
    )
    cut = "" if found.truncate_dim is None else f", truncate_dim={found.truncate_dim}"
    unit = ", normalize_embeddings=True" if found.renormalize else ""
    return Exported(
        found.folder,
        {
            "path": str(found.folder),
            "dtype": found.dtype,
            "dim": found.dim,
            "adapter_scale": found.scale,
        },
        f"SentenceTransformer({str(found.folder)!r}{cut}).encode(['A man plays guitar.']{unit})",
        scale=found.scale,
        base=request.base or found.base_name,
        notes=(f"{found.dtype}, adapter scale {found.scale:g}, {found.dim} dimensions",),
        truncate_dim=found.truncate_dim,
        renormalize=found.renormalize,
    )


def _to_sparse_autoencoder(request: ExportRequest) -> Exported:
    from sempa_mlx.encoder.coder_file import describe_coder, read_coder
    from sempa_mlx.export.sparse_autoencoder import check_kind, export_sparse_autoencoder

    assert request.coder is not None  # `faults` has seen to it
    check_kind(describe_coder(request.coder)["kind"])  # a lexical one needs its model to be read
    export_sparse_autoencoder(read_coder(request.coder), request.out)
    module = "sentence_transformers.sparse_encoder.modules.SparseAutoEncoder"
    return Exported(
        request.out,
        {"path": str(request.out), "coder": str(request.coder)},
        f"{module}.load({str(request.out)!r})\n"
        "on embeddings as they leave the model, not of unit length: codes are the coder's; what "
        "the module rebuilds from them is not, as it has no scale",
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


_FORMS: dict[str, Callable[[ExportRequest], Exported]] = {
    "mlx": _to_mlx,
    "peft": _to_peft,
    "fused": _to_fused,
    "encoder": _to_encoder,
    "sentence-transformers": _to_sentence_transformers,
    "sparse-autoencoder": _to_sparse_autoencoder,
}
