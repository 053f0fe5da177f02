"""What an export carries along: the model's own files, and no others by way of a link."""

import shutil

import pytest

from sempa_mlx.errors import ModelError
from sempa_mlx.export.model_files import copy_base
from tests.tiny import write_tiny_folder


@pytest.fixture
def base(tmp_path):
    write_tiny_folder(tmp_path / "base")
    return tmp_path / "base"


def test_a_link_out_of_the_folder_is_not_followed_into_an_export(tmp_path, base):
    (tmp_path / "private.txt").write_text("my keys")
    (base / "merges.txt").symlink_to(tmp_path / "private.txt")
    (base / "LICENSE").symlink_to("../private.txt")
    with pytest.raises(ModelError, match="leads out of the model's folder") as error:
        copy_base(base, tmp_path / "out")
    places = [problem.place for problem in error.value.problems]
    assert places == [str(base / "LICENSE"), str(base / "merges.txt")]
    assert not list(tmp_path.glob("out/*.txt"))


def test_links_of_the_hubs_cache_are_followed(tmp_path, base):
    cache = tmp_path / "models--owner--model"
    commit = cache / "snapshots" / "0123abcd"
    shutil.copytree(base, commit)
    (cache / "blobs").mkdir()
    (commit / "merges.txt").symlink_to(cache / "blobs" / "77aa")
    (cache / "blobs" / "77aa").write_text("of the model")
    copy_base(commit, tmp_path / "out")
    assert (tmp_path / "out" / "merges.txt").read_text() == "of the model"


def test_a_link_within_the_folder_is_followed(tmp_path, base):
    (base / "notes.txt").write_text("of the model")
    (base / "merges.txt").symlink_to("notes.txt")
    copy_base(base, tmp_path / "out")
    assert (tmp_path / "out" / "merges.txt").read_text() == "of the model"
