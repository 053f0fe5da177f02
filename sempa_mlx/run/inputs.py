"""What a run reads: preference rows and dev pairs, and where they came from. It needs no model."""

from dataclasses import dataclass

from sempa_mlx.config import SempaConfig
from sempa_mlx.config_terms import BESIDE, SCORE_NOTHING, SENTENCE_TERMS
from sempa_mlx.data.preference_rows import SENTENCE_FORMS
from sempa_mlx.data.preferences import PreferenceReport, read_preferences
from sempa_mlx.data.readers import read_text
from sempa_mlx.data.records import PreferenceRecord, StsTask
from sempa_mlx.data.sources import Source, dev_source, general_text, training_source
from sempa_mlx.data.sts_sets import load_dev_pairs
from sempa_mlx.errors import ConfigError, Problem
from sempa_mlx.run.trackers import check_tracker


@dataclass(slots=True)
class RunData:
    """Rows to train on, rows to validate on (may be none), and dev pairs."""

    train: Source
    report: PreferenceReport
    records: tuple[PreferenceRecord, ...]
    dev: Source
    dev_task: StsTask
    dev_records: tuple[PreferenceRecord, ...] = ()
    dev_rows: Source | None = None
    num_dev_rows: int = 0  # read, of which `dev_records` are kept
    kl_text: str = ""
    remark: str = ""

    @property
    def notes(self) -> list[str]:
        """Remarks the user should see, such as a fallback to the demo data."""
        rows = self.dev_rows.note if self.dev_rows else ""
        return [note for note in (self.train.note, self.dev.note, rows, self.remark) if note]


def read_run_data(config: SempaConfig) -> RunData:
    """Read training rows, validation rows and dev pairs.

    Raises:
        ConfigError: settings that do not go together; all of them.
        DataError: a file is missing or malformed; all faults of a file at once.
    """
    faults = _combination_faults(config)
    if faults:
        raise ConfigError(faults, state="nothing was started")
    check_tracker(config.output.report_to)
    train = training_source(config.data.train)
    data = read_preferences(
        train.path,
        template=config.data.template,
        system=config.data.system,
        limit=config.data.limit,
        candidates=config.candidates,
        skip_faulty=train.is_downloaded,
    )
    dev = dev_source(config.eval.data)
    pairs = load_dev_pairs(dev.path, config.eval.pairs)
    found = RunData(train, data.report, data.records, dev, StsTask("dev", "dev", pairs))
    found.remark = _misread(config, train, data.report.format)
    if config.data.dev is not None:
        source = training_source(config.data.dev)
        rows = read_preferences(
            source.path,
            template=config.data.template,
            system=config.data.system,
            candidates=config.candidates,
            skip_faulty=source.is_downloaded,
        )
        found.dev_rows, found.num_dev_rows = source, rows.report.rows
        found.dev_records = rows.records
    if "kl" in config.objective.terms and config.objective.kl_text is not None:
        found.kl_text = read_text(
            general_text(config.objective.kl_text), state="nothing was started"
        )
    return found


def _misread(config: SempaConfig, train: Source, form: str) -> str:
    """Return what to say where rows of prompts and answers would only train embeddings."""
    terms = set(config.objective.terms)
    if form in SENTENCE_FORMS or not terms & set(SENTENCE_TERMS) or terms - set(BESIDE):
        return ""
    return (
        f"{train.label}: rows of form {form} are prompts and answers; `{config.objective.loss}` "
        "only draws the embeddings of a prompt and its chosen answer together; to train on the "
        "preferences: --config sempa"
    )


def _combination_faults(config: SempaConfig) -> list[Problem]:
    """Return what is wrong with settings that are right by themselves."""
    faults = []
    if config.eval.metric != "spearman" and config.data.dev is None:
        what = f"eval.metric `{config.eval.metric}` needs preference rows to validate on"
        faults.append(Problem(what, fix="set data.dev"))
    if config.eval.metric == "loss" and config.objective.terms.keys() <= SCORE_NOTHING:
        what = f"eval.metric `loss` is of terms that compare completions; `{config.objective.loss}`"
        fix = "set eval.metric=spearman, or accuracy"
        faults.append(Problem(f"{what} has none", fix=fix))
    if config.train.grad_checkpoint and config.lora.dropout:
        what = "train.grad_checkpoint cannot draw the masks of lora.dropout twice alike"
        faults.append(Problem(what, fix="set lora.dropout=0, or train.grad_checkpoint=false"))
    return faults + _code_faults(config)


def _code_faults(config: SempaConfig) -> list[Problem]:
    """Return what is missing for a coder that is trained, or fitted after training."""
    faults = []
    if "code" in config.objective.terms:
        if config.sparse.start is None:
            fix = "fit one to the base (sempa-mlx sparse fit), and set sparse.start"
            faults.append(Problem("the term `code` needs a coder to start from", fix=fix))
        if config.sparse.coder is not None:
            what = "the term `code` trains a coder; another fitted afterwards would replace it"
            faults.append(Problem(what, fix="set sparse.coder=null"))
        if config.eval.dial is not None:
            what = "a coder that is trained beside the adapter knows it at scale 1 only"
            faults.append(Problem(what, fix="set eval.dial=null"))
    elif config.sparse.start is not None:
        what = "sparse.start is read by the loss's term `code` only"
        faults.append(Problem(what, fix="add it to objective.loss, or set sparse.start=null"))
    return faults
