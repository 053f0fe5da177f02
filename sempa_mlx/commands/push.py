"""What `sempa-mlx export --push` does after an export: a model card, and one upload."""

from dataclasses import replace
from pathlib import Path

from sempa_mlx.commands.export import NOTHING, Exported, ExportRequest
from sempa_mlx.console import Console
from sempa_mlx.errors import Problem, UsageError

CARD_FILE = "README.md"


def check_push(request: ExportRequest) -> str | None:
    """Return what the export has to call its base; refuse what could not be pushed.

    Raises:
        UsageError: the repository has no possible name; or the export would name a folder of this
            machine as its base.
        ModelError: the adapter or its base cannot be found.
    """
    from sempa_mlx.export.adapted import BASE_NAME, public_name
    from sempa_mlx.export.hub import check_repo
    from sempa_mlx.model.load import locate
    from sempa_mlx.model.lora import read_adapter_config
    from sempa_mlx.model.recorded import recorded_base

    check_repo(request.push or "")
    if request.base is not None or request.to not in ("mlx", "peft"):
        return request.base
    folder = request.adapter_path
    config = read_adapter_config(folder)
    noted: str | None = (config.get("sempa") or {}).get(BASE_NAME)
    location = locate(request.model) if request.model else locate(*recorded_base(folder, config))
    takes_it_along = request.to == "mlx" and location.path.suffix == ".gguf"
    if public_name(location) is None and not noted and not takes_it_along:
        what = "others cannot find the base, which lies on this machine"
        fix = "name it as they can: --base owner/model; or push it along: --to encoder"
        raise UsageError(Problem(what, str(location.path), fix=fix), state=NOTHING)
    # A base that was copied into the folder has a path of this machine, which is not for others.
    return None if public_name(location) is not None or takes_it_along else noted


def push_export(console: Console, request: ExportRequest, exported: Exported) -> str:
    """Write the model card into an export and upload the folder; return its address.

    Raises:
        RunError: it cannot be pushed; the export stays.
    """
    from sempa_mlx.export.hub import push
    from sempa_mlx.files import write_text

    repo = request.push or ""
    write_text(exported.folder / CARD_FILE, _card(request, exported))
    with console.working(f"pushing {exported.folder} to {repo}"):
        address = push(exported.folder, repo, is_private=request.private)
    console.say(f"pushed to {address}")
    return address


def _card(request: ExportRequest, exported: Exported) -> str:
    from sempa_mlx.export.model_card import CardFacts, model_card
    from sempa_mlx.report.outcome import read_outcome
    from sempa_mlx.report.run_record import read_run
    from sempa_mlx.run.folder import CONFIG_COPY, METRICS_FILE

    facts = CardFacts(
        *(request.to, request.push or "", exported.base, exported.model, exported.scale),
        notes=exported.notes,
        truncate_dim=exported.truncate_dim,
        renormalize=exported.renormalize,
    )
    folder: Path = request.adapter_path
    if any((folder / name).is_file() for name in (METRICS_FILE, CONFIG_COPY)):
        record = read_run(folder)
        outcome = read_outcome(record)
        scores = [(step, outcome.shown(score)) for step, score in outcome.scores]
        facts = replace(facts, settings=record.settings, results=record.results)
        facts = replace(facts, metric=outcome.name, scores=scores)
    return model_card(facts)
