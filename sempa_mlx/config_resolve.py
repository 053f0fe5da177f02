"""Where the settings of a run come from: defaults < file < `--set section.key=value` < named flags.

Every fault of every layer is reported at once, also one that a later layer would have covered.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from sempa_mlx.config import SempaConfig
from sempa_mlx.config_faults import name_fault, value_fault
from sempa_mlx.config_file import Setting, parse_setting, read_settings, visible, write_settings
from sempa_mlx.config_recipes import list_recipes, missing_recipe, recipe_path
from sempa_mlx.errors import ConfigError, Problem
from sempa_mlx.files import named_path

DEFAULT_FILE = "sempa.yaml"
DEFAULT_RECIPE = "smollm2-135m"

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


def resolve_config(
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


def _read_source(source: str | Path | None) -> tuple[str, list[Setting | Problem]]:
    """Return what was chosen, and its settings and faults."""
    if source is None:
        source = Path(DEFAULT_FILE) if Path(DEFAULT_FILE).exists() else DEFAULT_RECIPE
    name, path = str(source), named_path(str(source))
    if isinstance(source, Path) or _looks_like_file(name):
        if not path.exists():
            return name, [missing_recipe(name, "no such file")]
        return name if "/" in name else f"./{name}", read_settings(path, name, SCHEMA)
    if name not in list_recipes():
        return name, [missing_recipe(name, "no such recipe, nor a file")]
    recipe = recipe_path(name)
    return f"built-in recipe {name}", read_settings(recipe, recipe.name, SCHEMA)


def _looks_like_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name or named_path(name).is_file()


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
