"""The built-in recipes: their names and files. Imports nothing heavy, for shell completion."""

from pathlib import Path

from sempa_mlx.errors import ConfigError, Problem

_PACKAGE = Path(__file__).parent


def list_recipes() -> tuple[str, ...]:
    """Return the names of the built-in recipes, sorted."""
    return tuple(sorted(path.stem for path in _recipe_folder().glob("*.yaml")))


def recipe_path(name: str) -> Path:
    """Return the file of a built-in recipe.

    Raises:
        ConfigError: there is no recipe of this name.
    """
    if name not in list_recipes():
        raise ConfigError(missing_recipe(name, "no such recipe"), state="nothing was started")
    return _recipe_folder() / f"{name}.yaml"


def recipe_summary(name: str) -> str:
    """Return the first line of a recipe's file, which says what it is for."""
    with recipe_path(name).open(encoding="utf-8") as file:
        return file.readline().removeprefix("# ").strip()


def missing_recipe(name: str, what: str) -> Problem:
    """Return a fault that names all recipes, and the one that was meant."""
    from sempa_mlx.config_faults import close_match
    from sempa_mlx.config_file import visible

    recipes = list_recipes()
    close = close_match(Path(name).stem, recipes)
    hint = f"did you mean the recipe `{close}`? " if close else ""
    return Problem(what, visible(name), fix=f"{hint}recipes: {', '.join(recipes)}")


def _recipe_folder() -> Path:
    """Return `configs` inside the package (a wheel), else beside it (a checkout)."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"
