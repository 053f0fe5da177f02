"""`sempa-mlx config`: recipes listed, shown, copied and checked without mlx."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sempa_mlx.config_notes import NOTES
from sempa_mlx.config_recipes import list_recipes, recipe_path
from sempa_mlx.config_resolve import resolve_config
from tests.command import done, files_below, refused

pytestmark = pytest.mark.usefixtures("here")


def test_recipes_are_listed_with_their_purpose():
    assert done("--quiet", "config", "list").out.split() == list(list_recipes())
    document = done("config", "list", "--json").document
    assert [entry["name"] for entry in document] == list(list_recipes())
    line = next(line for line in done("config", "list").out.splitlines() if "demo " in line)
    assert line.endswith("no download.")


@pytest.mark.parametrize("name", list_recipes())
def test_what_is_shown_is_a_file_that_config_takes(name):
    Path("copy.yaml").write_text(done("--quiet", "config", "show", name).out)
    assert resolve_config("copy.yaml").config == resolve_config(name).config
    document = done("--json", "config", "show", name).document
    assert document["config"] == resolve_config(name).config.model_dump(mode="json")


def test_every_value_is_shown_with_where_it_comes_from():
    Path("sempa.yaml").write_text("train:\n  seed: 3\n  clip: 2\n")
    outcome = done("config", "show", "--set", "train.clip=0.5", "--set", "eval.dial=null")
    lines = {line.split(":")[0].strip(): line for line in outcome.out.splitlines()}
    assert outcome.err == "# ./sempa.yaml\n"
    assert lines["seed"].split() == ["seed:", "3", "#", "sempa.yaml:2"]
    assert lines["clip"].split() == ["clip:", "0.5", "#", "--set"]
    assert lines["dial"].split() == ["dial:", "null", "#", "--set"]
    assert lines["beta"].split() == ["beta:", "0.1", "#", "default"]
    document = done("config", "show", "--json").document
    assert (document["origin"], document["config"]["train"]["clip"]) == ("./sempa.yaml", 2.0)
    assert document["sources"]["train.clip"] == "sempa.yaml:3"
    assert document["sources"].keys() == NOTES.keys()


def test_a_recipe_is_copied_whole_and_not_over_another_file(here):
    assert done("config", "copy", "bridge").out == "sempa.yaml\n"
    assert Path("sempa.yaml").read_bytes() == recipe_path("bridge").read_bytes()
    before = files_below(here)
    assert "sempa.yaml exists; add --force" in refused(2, "config", "copy", "demo").err
    assert "no such recipe" in refused(2, "config", "copy", "brigde", "new.yaml").err
    assert files_below(here) == before
    done("config", "copy", "demo", "--force")
    done("config", "copy", "demo", "sub/other.yaml")
    assert resolve_config("sempa.yaml").config == resolve_config("sub/other.yaml").config
    Path("link.yaml").symlink_to("sempa.yaml")
    assert "symbolic link" in refused(2, "config", "copy", "demo", "link.yaml", "--force").err


def test_validate_tells_the_faults_of_all_files_at_once():
    Path("good.yaml").write_text("train:\n  seed: 3\n")
    Path("bad.yaml").write_text("train:\n  sed: 3\n  clip: 0\n")
    Path("worse.yaml").write_text("lora:\n  rank: 0\n")
    outcome = done("config", "validate", "good.yaml", "demo")
    assert outcome.out == "./good.yaml: no faults\nbuilt-in recipe demo: no faults\n"
    errors = refused(
        2, "config", "validate", "bad.yaml", "good.yaml", "worse.yaml", "no.yaml"
    ).errors
    assert [line.split()[1] for line in errors] == [
        *("bad.yaml:2:", "bad.yaml:3:", "worse.yaml:2:", "no.yaml:")
    ]


@pytest.mark.parametrize(
    "line", ["train --config smol", "train -c smol", "config show smol", "config copy smol"]
)
def test_the_shell_completes_recipes_and_imports_little(line):
    code = (
        "import sys\nfrom sempa_mlx.cli import app\n"
        "try:\n    app(prog_name='sempa-mlx')\n"
        "finally:\n    print(sorted({'mlx', 'numpy', 'yaml'} & set(sys.modules)))\n"
    )
    words = f"sempa-mlx {line}"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {
            "_SEMPA_MLX_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.split("\n")[:3] == ["smollm2-135m", "smollm2-360m", "[]"], found.stderr
