"""A reader who copies every command of a page, first to last, sees all of them work."""

import pytest

from sempa_mlx.model import released
from tests.adapters import write_run
from tests.command import SENTENCES, write_pairs, write_triplets
from tests.pages import ROOT, commands, follow

PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]


@pytest.fixture
def reader(tmp_path, monkeypatch, tiny_embedded, short_demo):
    """A folder with what the pages take for given; a tiny model and adapter for the packaged."""
    elsewhere = tiny_embedded.parent
    write_run(elsewhere / "smollm2-135m-nli", tiny_embedded)
    monkeypatch.setattr(released, "_FOLDER", elsewhere)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "notes.txt").write_text("".join(f"{text}\n" for text in SENTENCES))
    (here / "wiki.txt").write_text("A cat sleeps on the warm stone. " * 40)
    write_triplets(here / "pairs.jsonl")
    for name in ("STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICKR"):
        write_pairs(here / "sts" / name / "test.tsv", 9)
    return here


@pytest.mark.timeout(300)  # half a minute where nothing else runs
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_page_works(reader, page):
    assert len(commands(page)) > 5
    follow(page)
