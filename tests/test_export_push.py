"""`export --push`: what would go to the Hub. Nothing goes there; a fake takes it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml

from sempa_mlx.errors import UsageError
from sempa_mlx.export.hub import check_repo
from sempa_mlx.export.model_card import CardFacts, model_card
from tests.adapters import write_run
from tests.command import done, files_below, refused, training, write_inputs
from tests.tiny import write_tiny_folder

TOKEN = "hf_abcdefghijklmnop"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A finished run; tests write elsewhere."""
    folder = write_inputs(tmp_path_factory.mktemp("space"))
    done(*training(folder, "lora.rank=3"), "--adapter-path", folder / "run")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A Hub that remembers what it was asked for, and can be told to refuse."""
    found = SimpleNamespace(created=[], uploaded=[], error=None, is_private=True)

    class Api:
        def __init__(self, **_names):
            pass

        def create_repo(self, repo, *, private, exist_ok):
            assert exist_ok
            found.created.append((repo, private))
            return f"https://huggingface.co/{repo}"

        def model_info(self, repo):
            return SimpleNamespace(id=repo, private=found.is_private)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            if found.error is not None:
                raise found.error
            assert commit_message
            files = {p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*")}
            found.uploaded.append((repo_id, files))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return found


def push(space, form, *more):
    run = ("--adapter-path", space / "run", "--out", "out")
    return ("export", "--to", form, *run, "--push", "owner/name", *more)


def header_and_text(card):
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


FORMS = ("mlx", "peft", "fused", "encoder", "sentence-transformers")


@pytest.mark.parametrize("form", FORMS)
def test_the_export_goes_up_with_its_card(space, here, hub, form):
    outcome = done(*push(space, form, "--base", "owner/base", "--private"), "--json")
    assert hub.created == [("owner/name", True)]
    [(repo, files)] = hub.uploaded
    assert repo == "owner/name"
    assert files == set(files_below(here / "out"))
    assert outcome.document["url"] == "https://huggingface.co/owner/name"
    assert "README.md" in files
    header, text = header_and_text(Path("out/README.md").read_text())
    assert header["base_model"] == "owner/base"
    library = form if form in ("peft", "sentence-transformers") else "mlx"
    assert header["library_name"] == library
    assert ("mlx" in header["tags"]) == (library == "mlx")
    assert "lora.rank: 3" in text
    assert "| step | dev Spearman × 100 |" in text
    assert "pairs.jsonl, 12 pairs, 3 steps" in text
    pushed = "".join(path.read_text() for path in Path("out").rglob("*.*") if is_text(path))
    assert str(space) not in pushed
    assert TOKEN not in outcome.out + outcome.err + pushed


def is_text(path):
    return path.suffix in (".md", ".json", ".jinja")


def test_a_fused_card_says_how_it_was_verified(space, here, hub):
    done(*push(space, "fused"))
    header, text = header_and_text(Path("out/README.md").read_text())
    assert "base_model" not in header
    assert header["pipeline_tag"] == "text-generation"
    assert "Verified on packaged sentences" in text
    assert hub.created == [("owner/name", None)]


def test_a_card_of_sentence_transformers_is_of_its_library_and_use(space, here, hub):
    """The Hub finds it among models of sentence similarity; its example opens what was pushed."""
    shutil.copytree(space / "run", here / "run")
    settings = json.loads((here / "run" / "encoder.json").read_text())
    (here / "run" / "encoder.json").write_text(json.dumps(settings | {"truncate_dim": 8}))
    run = ("--adapter-path", "run", "--out", "out", "--base", "owner/base")
    done("export", "--to", "sentence-transformers", *run, "--push", "owner/name")
    header, text = header_and_text(Path("out/README.md").read_text())
    assert header["pipeline_tag"] == "sentence-similarity"
    assert header["base_model_relation"] == "finetune"
    assert {"sentence-transformers", "feature-extraction"} <= set(header["tags"])
    assert "from sentence_transformers import SentenceTransformer" in text
    assert 'SentenceTransformer("owner/name", truncate_dim=8).encode(' in text
    assert "normalize_embeddings=True)" in text, "it cuts vectors after it has normalised them"
    assert "dpo" in header["tags"]
    assert "float32, adapter scale 1, 8 dimensions" in text
    [(_, files)] = hub.uploaded
    assert {"README.md", "modules.json", "1_Pooling/config.json", "model.safetensors"} <= files


def test_the_table_has_every_evaluation(space, here, hub):
    done(*push(space, "encoder"))
    results = json.loads((space / "run" / "results.json").read_text())
    text = Path("out/README.md").read_text()
    for step in results["dev_scores"]:
        assert f"\n| {step} | " in text
    assert f"The adapter of step {results['best_step']} was kept" in text


def test_an_adapter_without_a_run_has_a_card_too(here, hub):
    write_tiny_folder(here / "base")
    write_run(here / "run", here / "base")
    done(*push(here, "encoder"))
    _, text = header_and_text(Path("out/README.md").read_text())
    assert "## Use" in text
    assert "## Training" not in text
    assert "## Measured" not in text


@pytest.mark.parametrize("form", ["mlx", "peft"])
def test_a_base_that_others_cannot_find_is_refused_before_the_work(space, here, hub, form):
    outcome = refused(2, *push(space, form))
    assert "others cannot find the base" in outcome.errors[0]
    assert "--base owner/model" in outcome.err
    assert (files_below(here), hub.created) == ({}, [])


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/na me", "owner/", "../x", "o/a--b"])
def test_impossible_names_are_refused_before_the_work(space, here, hub, name):
    run = ("--adapter-path", space / "run", "--out", "out", "--push", name)
    outcome = refused(2, "export", "--to", "encoder", *run)
    assert "is no name of a repository" in outcome.errors[0]
    assert files_below(here) == {}
    with pytest.raises(UsageError):
        check_repo(name)


def test_a_public_repository_is_not_taken_for_a_private_one(space, here, hub):
    hub.is_private = False
    outcome = refused(1, *push(space, "encoder", "--private"))
    assert "exists and is public" in outcome.errors[0]
    assert "hf upload" not in outcome.err, "it would publish what is to be private"
    assert hub.uploaded == []
    assert Path("out/README.md").is_file()


def refusal(status):
    from huggingface_hub.errors import HfHubHTTPError

    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{status} for https://x?token={TOKEN}\nmore")
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (refusal(403), "does not let you write"),
        (refusal(401), "does not let you write"),
        (refusal(500), "cannot push to owner/name"),
        (huggingface_hub.errors.LocalTokenNotFoundError("no"), "does not let you write"),
        (ConnectionError(f"broken {TOKEN}"), "cannot push to owner/name"),
    ],
)
def test_what_the_hub_refuses_is_said_without_the_token(space, here, hub, error, what):
    hub.error = error
    outcome = refused(1, *push(space, "encoder"))
    assert what in outcome.errors[0]
    assert TOKEN not in outcome.err
    assert "hf upload owner/name out" in outcome.err
    assert Path("out/adapters.safetensors").is_file()


def test_what_is_to_be_private_stays_so_when_it_is_pushed_by_hand(space, here, hub):
    hub.error = refusal(500)
    run = ("--adapter-path", space / "run", "--out", "my out")
    outcome = refused(1, "export", "--to", "encoder", *run, "--push", "owner/name", "--private")
    assert "see that owner/name is private" in outcome.err
    assert "hf upload" not in outcome.err, "which does not look whether it is"
    outcome = refused(1, "export", "--to", "encoder", *run[:2], "--out", "an out", "--push", "a/b")
    assert "hf upload a/b 'an out'" in outcome.err


def test_the_card_of_a_gguf_base_names_the_folder_it_lies_in():
    facts = CardFacts("mlx", "owner/name", "owner/base", "adapter/base", 1.0)
    header, text = header_and_text(model_card(facts))
    assert "--model adapter/base --adapter-path adapter" in text
    assert header["base_model_relation"] == "adapter"


def test_private_needs_push(space, here):
    run = ("--adapter-path", space / "run", "--out", "out", "--private")
    assert "--private goes with --push" in refused(2, "export", "--to", "mlx", *run).errors[0]


def test_a_base_that_was_taken_along_is_pushed_under_its_public_name(space, here, hub):
    done("export", "--to", "encoder", "--adapter-path", space / "run", "--out", "whole")
    config = Path("whole/adapter_config.json")
    about = json.loads(config.read_text())
    about["sempa"]["base_name"] = "owner/model"
    config.write_text(json.dumps(about))
    run = ("--adapter-path", "whole", "--out", "out")
    done("export", "--to", "mlx", *run, "--push", "owner/name")
    assert json.loads(Path("out/adapter_config.json").read_text())["model"] == "owner/model"
    assert json.loads(Path("out/encoder.json").read_text())["model"]["name"] == "owner/model"


def test_a_card_has_the_tag_of_dpo_only_if_that_was_the_loss():
    losses = {"sigmoid + 2 kl": True, "robust + 0.1 sft": True, "listwise": True}
    losses |= {"embedding + 2 kl": False, "simpo": False, "of a later version": False, "": False}
    for loss, is_dpo in losses.items():
        settings = {"objective.loss": loss} if loss else {}
        facts = CardFacts("encoder", "owner/name", None, "", 1.0, settings=settings)
        header, _ = header_and_text(model_card(facts))
        assert ("dpo" in header["tags"]) == is_dpo
