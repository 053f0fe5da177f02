"""Fault 24: a reader that has gone, closed streams, no terminal, no locale, a width of 20.

Also: tests/test_cli.py, tests/test_usage_errors.py.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unmeasured

BARE = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHON"))},
    "LC_ALL": "C",
    "LANG": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONPATH": os.pathsep.join(sys.path),
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "20",
    "TERM": "dumb",
}
TEXTS = "Ein Kätzchen schläft.\n猫が寝ている。\n🐈 [red]\n"


def bare(*arguments, stdin=b"", shell="", cwd):
    """Run the program in a locale that knows ASCII alone, on pipes."""
    command = [sys.executable, "-m", "sempa_mlx", *map(str, arguments)]
    if shell:
        command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, env=BARE, cwd=cwd)


def assert_plain(ended, code):
    talk = ended.stderr.decode()
    assert ended.returncode == code, talk
    for word in ("UnicodeEncodeError", "UnicodeDecodeError", "Traceback", "this is a bug"):
        assert word not in talk
    assert b"\x1b" not in ended.stdout + ended.stderr


def test_texts_beyond_ascii_go_in_and_out_as_they_are(space, here):
    (here / "a.txt").write_text(TEXTS, encoding="utf-8")
    ended = bare("embed", "-", "--model", space / "base", stdin=TEXTS.encode(), cwd=here)
    assert_plain(ended, 0)
    rows = [json.loads(line) for line in ended.stdout.decode().splitlines()]
    assert [row["text"] for row in rows] == TEXTS.splitlines()


def test_names_of_files_beyond_ascii_are_told(here):
    row = {"anchor": "ä", "entailment": "b", "contradiction": "c", "schlüssel": "猫"}
    (here / "zeilen-ä.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    ended = bare("data", "check", "zeilen-ä.jsonl", cwd=here)
    assert_plain(ended, 0)
    assert "keys without meaning here: schlüssel" in ended.stdout.decode()
    ended = bare("data", "check", "keine-ä.jsonl", "--json", cwd=here)
    assert_plain(ended, 3)
    assert json.loads(ended.stdout)["error"]["problems"][0]["what"] == "no such file"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["config", "list"], ["x"]])
def test_a_narrow_place_without_a_terminal_gets_plain_text(here, arguments):
    assert_plain(bare(*arguments, cwd=here), 2 if arguments == ["x"] else 0)


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_take_anything(here, shell):
    assert_plain(bare("config", "show", "demo", shell=shell, cwd=here), 0)
    assert_plain(bare("config", "show", "nowhere", shell=shell, cwd=here), 2)


@pytest.mark.parametrize("arguments", [["config", "show", "demo"], ["config", "list", "--json"]])
def test_a_reader_that_has_gone_ends_it_quietly(here, arguments):
    ended = bare(*arguments, shell="| true; exit ${PIPESTATUS[0]}", cwd=here)
    assert_plain(ended, 0)
    assert b"rror" not in ended.stderr


def test_a_full_disk_behind_standard_output_is_told(here):
    ended = bare("config", "show", "demo", shell="> /dev/full", cwd=here)
    assert_plain(ended, 4)
    assert b"No space left on device" in ended.stderr


def test_an_error_nobody_reads_keeps_its_code(here):
    ended = bare("config", "show", "nowhere", shell="2>&1 | true; exit ${PIPESTATUS[0]}", cwd=here)
    assert ended.returncode == 2
