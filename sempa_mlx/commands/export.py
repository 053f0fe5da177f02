"""`sempa-mlx export` and `import-peft`."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sempa_mlx.console import Console
from sempa_mlx.errors import Problem, UsageError

if TYPE_CHECKING:
    from sempa_mlx.export.fused import Packing

STATE = "nothing was written"


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to write where, in which form; None leaves a part to its default."""

    to: str
    out: Path
    adapter: Path
    coder: Path | None = None
    base: str | None = None
    scale: float | None = None
    packing: dict[str, str | int | None] = field(default_factory=dict)
    max_error: float | None = None
    push: str | None = None
    private: bool = False


@dataclass(frozen=True, slots=True)
class _Written:
    """What an export says of itself: facts, the base it needs, and how to use it."""

    facts: Mapping[str, object]
    base: str
    use: str
    notes: tuple[str, ...] = ()


def run_export(console: Console, request: ExportRequest) -> None:
    """Write the adapter in another form, print how to use it, and push it if asked to."""
    _check(request)
    if request.push:
        from sempa_mlx.export.hub import check_repo

        check_repo(request.push)
    with console.working(f"exporting {request.adapter}"):
        written = _WRITERS[request.to](request)
    document = {"path": str(request.out), "to": request.to, **written.facts}
    for note in written.notes:
        console.warn(note)
    if request.push:
        from sempa_mlx.export.hub import push, write_card

        write_card(request.out, request.adapter, request.to, written.base, request.push)
        with console.working(f"uploading to {request.push}"):
            document["commit"] = push(request.out, request.push, private=request.private)
        console.say(f"pushed: {document['commit']}")
    console.result(str(request.out))
    console.document(document)
    console.say(f"\nuse it:  {written.use}")


def _check(request: ExportRequest) -> None:
    """Refuse options of another form, all at once."""
    takes = {
        "--coder": (request.coder, ("sparse-autoencoder",)),
        "--base": (request.base, ("peft",)),
        "--adapter-scale": (request.scale, ("peft", "fused", "sentence-transformers")),
        "--dtype": (request.packing.get("dtype"), ("fused", "sentence-transformers")),
        "--q-bits": (request.packing.get("bits"), ("fused",)),
        "--q-group-size": (request.packing.get("group_size"), ("fused",)),
        "--max-error": (request.max_error, ("fused",)),
    }
    faults = [
        Problem(f"{option} goes with --to {' or '.join(forms)}")
        for option, (value, forms) in takes.items()
        if value is not None and request.to not in forms
    ]
    if request.push and request.to == "sparse-autoencoder":
        faults.append(Problem("--push is for adapters and models, not for a coder"))
    if request.private and not request.push:
        faults.append(Problem("--private goes with --push"))
    if request.packing.get("group_size") and not request.packing.get("bits"):
        faults.append(Problem("--q-group-size goes with --q-bits"))
    if faults:
        raise UsageError(faults, state=STATE)


def _mlx(request: ExportRequest) -> _Written:
    from sempa_mlx.export.mlx import export_mlx

    exported = export_mlx(request.adapter, request.out)
    use = (
        f"python -m mlx_lm generate --model {shlex.quote(exported.model)} "
        f"--adapter-path {shlex.quote(str(exported.adapter))} --prompt 'Hello'"
    )
    facts = {"adapter_path": str(exported.adapter), "model": exported.model}
    return _Written(facts, exported.model, use)


def _peft(request: ExportRequest) -> _Written:
    from sempa_mlx.export.peft import export_peft

    found = export_peft(request.adapter, request.out, base=request.base, scale=request.scale)
    use = (
        f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({found.base!r}), "
        f"{str(request.out)!r})"
    )
    return _Written({"base": found.base}, found.base, use, found.notes)


def _fused(request: ExportRequest) -> _Written:
    from sempa_mlx.export.fused import MAX_ERROR, export_fused

    most = MAX_ERROR if request.max_error is None else request.max_error
    found = export_fused(
        request.adapter,
        request.out,
        scale=request.scale,
        packing=_packing(request),
        max_error=most,
    )
    use = f"python -m mlx_lm generate --model {shlex.quote(str(request.out))} --prompt 'Hello'"
    facts = {"error": found.error, "effect": found.effect, "num_tokens": found.num_tokens}
    proof = (
        f"KL to base + adapter {found.error:.2g} nats a token on {found.num_tokens} tokens; "
        f"the adapter moves predictions by {found.effect:.2g}"
    )
    return _Written(facts, _base(request), f"{use}\nproof:   {proof}")


def _encoder(request: ExportRequest) -> _Written:
    from sempa_mlx.export.bundle import export_encoder

    export_encoder(request.adapter, request.out)
    use = f"sempa-mlx embed FILE.txt --adapter-path {shlex.quote(str(request.out))}"
    return _Written({}, _base(request), use)


def _packing(request: ExportRequest) -> "Packing":
    from sempa_mlx.export.fused import Packing

    given = {name: value for name, value in request.packing.items() if value is not None}
    return Packing(**given)  # type: ignore[arg-type]


def _base(request: ExportRequest) -> str:
    from sempa_mlx.model.adapter_config import read_adapter_config
    from sempa_mlx.model.load import ALIASES

    name = str(read_adapter_config(request.adapter)["model"])
    return ALIASES[name].hub_id if name in ALIASES else name


def _coder(request: ExportRequest) -> _Written:
    from sempa_mlx.encoder.coder_file import describe_coder, read_coder
    from sempa_mlx.export.sparse_autoencoder import check_kind, export_sparse_autoencoder

    coder = request.coder
    if coder is None:
        what = "--to sparse-autoencoder needs a coder"
        raise UsageError(Problem(what, fix="add --coder FILE"), state=STATE)
    check_kind(describe_coder(coder)["kind"])  # a lexical coder cannot be read without its model
    export_sparse_autoencoder(read_coder(coder), request.out)
    path = "sentence_transformers.sparse_encoder.modules.SparseAutoEncoder"
    use = (
        f"{path}.load({str(request.out)!r})\n"
        "on embeddings as they leave the model, not of unit length: codes are the coder's; what "
        "the module rebuilds from them is not, as it has no scale"
    )
    return _Written({"coder": str(coder)}, "", use)


_WRITERS = {
    "mlx": _mlx,
    "peft": _peft,
    "fused": _fused,
    "encoder": _encoder,
    "sparse-autoencoder": _coder,
}


def run_import_peft(console: Console, source: Path, out: Path, model: str | None) -> None:
    """Turn a PEFT adapter into an adapter folder here, and print how to use it."""
    from dataclasses import asdict

    from sempa_mlx.export.peft_import import import_peft

    with console.working(f"importing {source}"):
        found = import_peft(source, out, model=model)
    console.result(str(found.folder))
    console.document(asdict(found) | {"folder": str(found.folder)})
    console.say(
        f"{found.kind} of rank {found.rank}, scale {found.scale:g}, on {found.num_layers} layers "
        f"of {found.base}; it embeds with PromptEOL"
    )
    console.say(f"\nuse it:  sempa-mlx embed FILE.txt --adapter-path {shlex.quote(str(out))}")
