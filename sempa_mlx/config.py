"""The settings of a run: what exists, its ranges, and where each value came from.

Precedence: defaults < file < `--set section.key=value` < named flags. Every fault of every layer
is reported at once, also one that a later layer would have covered. Functions below the command
line take the section they need, never the whole tree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sempa_mlx.config_faults import close_match, name_fault, value_fault
from sempa_mlx.config_file import Setting, parse_setting, read_settings, visible, write_settings
from sempa_mlx.errors import ConfigError, Problem

DEFAULT_FILE = "sempa.yaml"
DEFAULT_RECIPE = "smollm2-135m"

_PACKAGE = Path(__file__).parent


def _all_or_last(layers: int) -> int:
    if layers != -1 and layers < 1:
        raise ValueError("-1 (all blocks) or >= 1 (the last ones)")
    return layers


def _not_empty(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("null or a list of at least one")
    return names


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
# YAML has lists only; strict mode would ask for a tuple.
Names = Annotated[tuple[Text, ...], Field(strict=False), AfterValidator(_not_empty)]


class _Section(BaseModel):
    """Frozen and strict: no unknown key, no `"1"` for 1, no `true` for 1, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """The base: alias, folder, Hub id or GGUF file; `max_tokens` bounds one row, in tokens."""

    name: Text = "smollm2-135m"
    revision: Text | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_tokens: Annotated[int, Field(ge=16)] = 512


class DataConfig(_Section):
    """Preferences: `train` is a path, `demo`, `nli` or `auto`; the first `limit` rows are used."""

    train: Text = "auto"
    template: Literal["P1", "P2", "P3", "P4", "P5"] = "P1"
    system: str | None = "You are a helpful assistant"
    limit: Count | None = None


class LoraConfig(_Section):
    """The adapter.

    `layers` counts blocks from the last (-1: all); `keys` names layers inside a block, such as
    `self_attn.q_proj` (None: every linear layer).
    """

    rank: Count = 8
    alpha: Positive = 32.0
    dropout: Fraction = 0.0
    layers: Annotated[int, AfterValidator(_all_or_last)] = -1
    keys: Names | None = None

    @property
    def scale(self) -> float:
        """Return what the low-rank update is multiplied with: `alpha / rank`."""
        return self.alpha / self.rank


class ObjectiveConfig(_Section):
    """The loss; `beta` weighs the log-ratio to the reference (SemPA, eq. of DPO)."""

    loss: Literal["sigmoid"] = "sigmoid"
    beta: Positive = 0.1


class TrainConfig(_Section):
    """The loop.

    A step is one optimizer update over `batch_size` pairs, accumulated over forwards of at most
    `micro_batch_tokens` tokens (None: by device). `iters` counts steps and caps the epochs;
    `warmup` is a fraction of the steps; `clip` bounds the global gradient norm.
    """

    epochs: Count = 1
    iters: Count | None = None
    batch_size: Count = 32
    micro_batch_tokens: Annotated[int, Field(ge=64)] | None = None
    learning_rate: Positive = 1e-4
    warmup: Fraction = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    clip: Positive = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    scoring: Literal["auto", "shared", "plain"] = "auto"


class EvalConfig(_Section):
    """Scoring on an STS dev set (a path, `demo`, `stsb` or `auto`) between steps.

    `pairs` are spread evenly over the set (None: all); `patience` is the number of evaluations
    without a better score before the run stops (None: never).
    """

    every: Count = 10
    data: Text = "auto"
    pairs: Annotated[int, Field(ge=2)] | None = 500
    patience: Count | None = None


class OutputConfig(_Section):
    """The run folder."""

    path: Text = "adapters"


class SempaConfig(_Section):
    """All settings of a run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    output: OutputConfig = OutputConfig()


SCHEMA: Mapping[str, tuple[str, ...]] = {
    section: tuple(keys) for section, keys in SempaConfig().model_dump().items()
}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config, which source was chosen, and where each value came from.

    `sources` maps every dotted key to `default`, `file.yaml:12`, `--set` or the name of a flag.
    """

    config: SempaConfig
    origin: str
    sources: dict[str, str]


def load_config(
    source: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] = MappingProxyType({}),
) -> Resolved:
    """Resolve the settings of a run.

    Args:
        source: a recipe name or a file; a text is a file if it ends in .yaml or .yml, holds a
            slash or exists. None: `./sempa.yaml` if there is one, else the default recipe.
        sets: overrides `section.key=value`, the value in YAML.
        flags: flag name to (dotted key, value), for flags that were given.

    Raises:
        ConfigError: all faults of file, overrides and flags together.
    """
    origin, entries = _read_source(source)
    entries += _parse_sets(sets)
    entries += [Setting(key, value, flag, flag) for flag, (key, value) in flags.items()]
    settings = [entry for entry in entries if isinstance(entry, Setting)]
    problems = [problem for entry in entries for problem in _check(entry)]
    if problems:
        raise ConfigError(problems, state="nothing was started")
    tree: dict[str, dict[str, object]] = {section: {} for section in SCHEMA}
    sources = {f"{section}.{key}": "default" for section, keys in SCHEMA.items() for key in keys}
    for setting in settings:
        section, _, key = setting.key.partition(".")
        tree[section][key] = setting.value
        sources[setting.key] = setting.source
    return Resolved(SempaConfig.model_validate(tree), origin, sources)


def dump_config(config: SempaConfig) -> str:
    """Return the config as YAML text, every key named, that loads to an equal config."""
    return write_settings(config.model_dump(mode="json"))


def list_recipes() -> tuple[str, ...]:
    """Return the names of the built-in recipes, sorted."""
    return tuple(sorted(path.stem for path in _recipe_folder().glob("*.yaml")))


def recipe_path(name: str) -> Path:
    """Return the file of a built-in recipe.

    Raises:
        ConfigError: there is no recipe of this name.
    """
    if name not in list_recipes():
        raise ConfigError(_missing(name, "no such recipe"), state="nothing was started")
    return _recipe_folder() / f"{name}.yaml"


def _recipe_folder() -> Path:
    """Return `configs` inside the package (a wheel), else beside it (a checkout)."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def _missing(name: str, what: str) -> Problem:
    recipes = list_recipes()
    close = close_match(Path(name).stem, recipes)
    hint = f"did you mean the recipe `{close}`? " if close else ""
    return Problem(what, visible(name), fix=f"{hint}recipes: {', '.join(recipes)}")


def _read_source(source: str | Path | None) -> tuple[str, list[Setting | Problem]]:
    """Return what was chosen, and its settings and faults."""
    if source is None:
        source = Path(DEFAULT_FILE) if Path(DEFAULT_FILE).exists() else DEFAULT_RECIPE
    name, path = str(source), Path(source)
    if isinstance(source, Path) or _looks_like_file(name):
        if not path.exists():
            return name, [_missing(name, "no such file")]
        return name if "/" in name else f"./{name}", read_settings(path, name, SCHEMA)
    if name not in list_recipes():
        return name, [_missing(name, "no such recipe, nor a file")]
    recipe = recipe_path(name)
    return f"built-in recipe {name}", read_settings(recipe, recipe.name, SCHEMA)


def _looks_like_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name or Path(name).is_file()


def _parse_sets(sets: Sequence[str]) -> Iterator[Setting | Problem]:
    seen: set[str] = set()
    for text in sets:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            yield Problem("no `=`", f"--set {visible(text)}", fix="write `section.key=value`")
        elif key in seen:
            yield Problem("given twice", f"--set {visible(key)}", fix="keep one of them")
        else:
            seen.add(key)
            yield parse_setting(key, value, "--set")


def _check(entry: Setting | Problem) -> list[Problem]:
    """Return every fault of one value; each is checked by itself, as no two depend on another."""
    if isinstance(entry, Problem):
        return [entry]
    section, _, key = entry.key.partition(".")
    if key not in SCHEMA.get(section, ()):
        what, fix = name_fault(section, key, SCHEMA)
        return [Problem(what, entry.place, entry.evidence, fix)]
    try:
        SempaConfig.model_validate({section: {key: entry.value}})
    except ValidationError as exc:
        faults = [value_fault(error) for error in exc.errors(include_url=False)]
        return [Problem(what, entry.place, entry.evidence, fix) for what, fix in faults]
    return []
