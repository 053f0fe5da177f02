"""What is exported for sentence-transformers gives our vectors there. Marked `interop`."""

from dataclasses import replace

import numpy as np
import pytest

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.export.sentence_transformers import HARD_TEXTS, METHODS, export_sentence_transformers
from tests.adapters import write_run
from tests.test_interop_export import write_base

pytestmark = [
    pytest.mark.interop,
    pytest.mark.unmeasured,
    pytest.mark.filterwarnings("default"),
]
TEXTS = [*HARD_TEXTS, "A", "Two dogs run", "A woman reads 17 books; the children don't. " * 3]


def exported(tmp_path, family="llama", out="st", **changes):
    """Write a run with these settings and its export; return our encoder and theirs."""
    from sentence_transformers import SentenceTransformer

    run = write_run(tmp_path / "run", write_base(tmp_path / "base", family))
    encoder = Encoder.load(run)
    encoder = Encoder(encoder.loaded, replace(encoder.settings, **({"max_tokens": 400} | changes)))
    encoder.save_settings(run)
    export_sentence_transformers(run, tmp_path / out)
    return encoder, SentenceTransformer(str(tmp_path / out), device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_vectors_are_ours(tmp_path, method):
    ours, theirs = exported(tmp_path, method=method)
    found = theirs.encode(TEXTS, batch_size=4)
    assert found.shape == (len(TEXTS), 32)
    np.testing.assert_allclose(found, ours.encode(TEXTS), atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "olmo2", "phi3"])
def test_other_families_too(tmp_path, family):
    ours, theirs = exported(tmp_path, family)
    np.testing.assert_allclose(theirs.encode(TEXTS), ours.encode(TEXTS), atol=1e-4)


def test_dial_and_length_of_vectors_are_the_runs(tmp_path):
    ours, theirs = exported(tmp_path, adapter_scale=0.5, normalize=False)
    expected = ours.encode(TEXTS)
    assert np.abs(np.linalg.norm(expected, axis=1) - 1).min() > 0.1
    np.testing.assert_allclose(theirs.encode(TEXTS), expected, atol=1e-3)
    full = ours.with_scale(1.0).encode(TEXTS)
    assert np.abs(full - expected).max() > 0.05


def test_a_long_text_keeps_the_prompts_end(tmp_path):
    """Here it keeps its closing quote as well, so only the tokens of the template must be there."""
    ours, theirs = exported(tmp_path, max_tokens=40)
    long = "Two dogs run on the grass while a man is watching. " * 20
    ids = theirs.tokenize([long])["input_ids"][0].tolist()
    tail = ours.tokenize(["A"])[0][-6:]
    assert len(ids) == 40
    assert tuple(ids[-6:]) == tail


def test_a_second_copy_of_the_folder_is_the_same_model(tmp_path):
    """Saved again by sentence-transformers itself, nothing is lost."""
    from sentence_transformers import SentenceTransformer

    ours, theirs = exported(tmp_path)
    theirs.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), ours.encode(TEXTS), atol=1e-4)
