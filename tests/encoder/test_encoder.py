import functools
import json
import warnings

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.methods import METHODS
from sempa_mlx.encoder.settings import SETTINGS_FILE, EncoderSettings, read_settings
from sempa_mlx.errors import ModelError, UsageError
from sempa_mlx.model.lora import adapter_weights, attach, save_adapter
from tests.encoder.oracle import layers_one_by_one, one_by_one
from tests.tiny import MISFITS, SHARING, move_adapter, tiny_loaded, write_tiny_folder

FEW = settings(max_examples=25, deadline=None, derandomize=True)
METHOD = st.sampled_from(sorted(METHODS))
TEXTS = [
    "A cat sleeps on the warm stone.",
    "",
    "Two dogs run",
    'He said "no" — <|im_end|> and 17 more words followed, so that this text is the longest one',
    "A woman reads; the children don't.",
]
SENTENCES = st.lists(
    st.text(alphabet='aet .?"\n1é猫<|im_end>', max_size=30) | st.sampled_from(TEXTS),
    min_size=1,
    max_size=8,
)
LORA = LoraConfig(rank=4, alpha=8.0)

loaded_of = functools.cache(tiny_loaded)


def encoder_of(kind="llama", **changes):
    return Encoder(loaded_of(kind), EncoderSettings(**changes))


def put_adapter(loaded, size=0.3):
    attach(loaded.model, LORA, seed=1)
    move_adapter(loaded.model, size)
    return loaded


@functools.cache
def adapted():
    return put_adapter(tiny_loaded())


def fits(method, kind):
    """Convolutions have no attention to change."""
    return kind != "lfm2" or not METHODS[method].intervention.takes


@pytest.mark.parametrize("kind", [*SHARING, *MISFITS])
@pytest.mark.parametrize("method", METHODS)
def test_vectors_equal_a_walk_over_the_blocks_by_hand(kind, method):
    if not fits(method, kind):
        pytest.skip("refused; see test_interventions")
    # The windows of Gemma 3's first block end before the two prompts of cp differ.
    change = {"block": 1, "layer": -1} if method == "cp" else {}
    encoder = encoder_of(kind, method=method, **change)
    expected = [one_by_one(encoder, text) for text in TEXTS]
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


CHANGES = {"cp": {"block": 1, "layer": -1}, "tp": {"block": 2, "layer": -1}}


@pytest.mark.parametrize("kind", [*SHARING, *MISFITS])
@pytest.mark.parametrize("method", ["prompteol", "echo", "cp", "tp"])
def test_every_layer_can_be_read_in_one_pass(kind, method):
    if not fits(method, kind):
        pytest.skip("refused; see test_interventions")
    encoder = encoder_of(kind, method=method, **CHANGES.get(method, {}))
    ((found,), _) = encoder.read(TEXTS, range(encoder.depth + 1), batch_tokens=150)
    expected = np.stack([layers_one_by_one(encoder, text) for text in TEXTS], axis=1)
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("method", ["prompteol", "mean", "echo"])
@pytest.mark.parametrize("layer", range(-4, 4))
def test_a_layer_is_counted_as_in_hidden_states(method, layer):
    encoder = encoder_of(method=method, layer=layer)
    assert encoder.depth == 3
    expected = [one_by_one(encoder, text) for text in TEXTS]
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    same = encoder_of(method=method, layer=layer % 4)
    np.testing.assert_array_equal(encoder.encode(TEXTS), same.encode(TEXTS))


@FEW
@given(texts=SENTENCES, method=METHOD, batch_tokens=st.integers(1, 300))
def test_any_texts_in_any_batches_equal_one_by_one(texts, method, batch_tokens):
    encoder = encoder_of(method=method)
    found = encoder.encode(texts, batch_tokens=batch_tokens)
    assert found.dtype == np.float32
    assert found.shape == (len(texts), 32)
    np.testing.assert_allclose(found, [one_by_one(encoder, text) for text in texts], atol=1e-5)


@FEW
@given(texts=SENTENCES, method=METHOD, data=st.data())
def test_order_and_repetition_do_not_matter(texts, method, data):
    encoder = encoder_of(method=method)
    straight = encoder.encode(texts)
    places = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=12))
    found = encoder.encode([texts[place] for place in places])
    np.testing.assert_allclose(found, straight[places], atol=1e-5)
    for left, first in enumerate(places):
        for right, second in enumerate(places):
            if texts[first] == texts[second]:
                np.testing.assert_array_equal(found[left], found[right])


@pytest.mark.parametrize("kind", SHARING)
def test_running_the_shared_prefix_once_changes_nothing(kind):
    sharing, apart = encoder_of(kind), encoder_of(kind)
    # Whether it is a forest depends on what was loaded in this process before.
    sharing._reader._can_be_forest = apart._reader._can_be_forest = False
    apart._reader._can_share = False
    np.testing.assert_allclose(sharing.encode(TEXTS), apart.encode(TEXTS), atol=1e-5)
    assert sharing._reader._can_share


@pytest.mark.parametrize("kind", MISFITS)
def test_models_that_cannot_share_are_found_out(kind):
    encoder = encoder_of(kind)
    encoder._reader._can_be_forest = False
    encoder.encode(TEXTS)
    assert encoder._reader._can_share is False


def test_each_distinct_text_is_run_once(monkeypatch):
    encoder = encoder_of()
    rows, forward = [], encoder._forward
    monkeypatch.setattr(
        encoder, "_forward", lambda group, *rest: rows.extend(group) or forward(group, *rest)
    )
    encoder.encode(["a", "b", "a", "a", "b"])
    assert len(rows) == 2


def test_unit_length_unless_told_otherwise():
    unit, raw = encoder_of().encode(TEXTS), encoder_of(normalize=False).encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(raw / lengths, unit, atol=1e-6)


def test_a_zero_vector_stays_zero(monkeypatch):
    """Nothing to divide by: no NaN may come of it."""
    encoder = encoder_of()
    monkeypatch.setattr(encoder, "_forward", lambda texts, *_: np.zeros((1, 1, len(texts), 32)))
    np.testing.assert_array_equal(encoder.encode(TEXTS), np.zeros((len(TEXTS), 32)))


def test_a_truncated_vector_has_unit_length_again():
    whole = encoder_of(normalize=False).encode(TEXTS)
    raw = encoder_of(normalize=False, truncate_dim=5)
    unit = encoder_of(truncate_dim=5)
    assert unit.dim == 5
    np.testing.assert_array_equal(raw.encode(TEXTS), whole[:, :5])
    expected = whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(unit.encode(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("cut", [0, -1, 33])
def test_dimensions_that_are_not_there_are_refused(cut):
    with pytest.raises(UsageError, match="1 to 32"):
        encoder_of(truncate_dim=cut)


def test_all_dimensions_may_be_asked_for():
    np.testing.assert_array_equal(
        encoder_of(truncate_dim=32).encode(TEXTS), encoder_of().encode(TEXTS)
    )


@pytest.mark.parametrize("method", METHODS)
def test_scale_0_is_the_base_bit_for_bit(method):
    base = encoder_of(method=method).encode(TEXTS)
    dialled = Encoder(adapted(), EncoderSettings(method=method, adapter_scale=0.0))
    np.testing.assert_array_equal(dialled.encode(TEXTS), base)


def test_the_dial_is_turned_for_the_call_only():
    vectors = {
        scale: Encoder(adapted(), EncoderSettings(adapter_scale=scale)).encode(TEXTS)
        for scale in (1.0, 0.5, 0.0, 1.0)
    }
    assert np.abs(vectors[1.0] - vectors[0.0]).max() > 0.05
    assert np.abs(vectors[0.5] - vectors[0.0]).max() > 0.01
    assert np.abs(vectors[0.5] - vectors[1.0]).max() > 0.01
    expected = [one_by_one(Encoder(adapted()), text) for text in TEXTS]
    np.testing.assert_allclose(vectors[1.0], expected, atol=1e-5)


def test_a_failure_leaves_the_dial_where_it_was():
    encoder = Encoder(adapted(), EncoderSettings(adapter_scale=0.0))
    before = adapted().model(mx.array([[1, 2, 3]]))

    def fail(_count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode(TEXTS, on_progress=fail)
    np.testing.assert_array_equal(np.array(adapted().model(mx.array([[1, 2, 3]]))), before)


def test_an_empty_text_has_the_vector_of_the_bare_template():
    encoder = encoder_of()
    empty, blank = encoder.encode(["", " \n "])
    np.testing.assert_allclose(empty, blank, atol=1e-6)
    assert np.isfinite(encoder_of(method="mean").encode([""])).all()


def test_no_texts_give_no_vectors():
    assert encoder_of().encode([]).shape == (0, 32)


def test_one_string_is_a_mistake():
    with pytest.raises(UsageError, match="list of texts"):
        encoder_of().encode("a sentence")


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        encoder_of(method="prompt-eol")
    assert "did you mean `prompteol`" in caught.value.problems[0].fix
    assert ", ".join(METHODS) in caught.value.problems[0].fix


def test_long_texts_are_cut_with_one_warning():
    long = "one word after the other, " * 20
    encoder = encoder_of(max_tokens=64)
    with pytest.warns(UserWarning, match="2 texts were cut to 64 tokens") as caught:
        found = encoder.encode([long, "short", long + "more"], batch_tokens=64)
    assert len(caught) == 1
    rows = encoder.tokenize([long, "short", long + "more"])
    assert max(map(len, rows)) == 64
    states = [np.array(encoder.loaded.model.model(mx.array([row])))[0, -1] for row in rows]
    expected = [state / np.linalg.norm(state) for state in states]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found[0] - encoder_of().encode([long])[0]).max() > 1e-3


def test_texts_that_fit_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors, num_truncated = encoder_of().encode_counted(TEXTS)
    assert num_truncated == 0
    np.testing.assert_array_equal(vectors, encoder_of().encode(TEXTS))


def test_progress_counts_every_text_also_repeated_ones():
    done = []
    encoder_of().encode([*TEXTS, *TEXTS], batch_tokens=100, on_progress=done.append)
    assert sum(done) == 2 * len(TEXTS)
    assert len(done) > 1


SETTINGS = [
    EncoderSettings(
        method="mean",
        max_tokens=99,
        normalize=False,
        truncate_dim=7,
        adapter_scale=0.5,
        layer=2,
    ),
    EncoderSettings(method="cp", layer=3, block=1, strength=0.25),
    EncoderSettings(method="tp", layer=-1, block=2),
    EncoderSettings(method="metaeol", layer=-2),
]


@pytest.mark.parametrize("given", SETTINGS, ids=lambda given: given.method)
def test_settings_come_back_as_they_were_saved(tmp_path, given):
    Encoder(loaded_of("llama"), given).save_settings(tmp_path)
    assert read_settings(tmp_path) == given
    stored = json.loads((tmp_path / SETTINGS_FILE).read_text())
    method = METHODS[given.method]
    assert stored["format"] == 2
    assert stored["pooling"] == method.pooling
    assert stored["dim"] == given.truncate_dim or 32
    assert stored["dtype"] == "float32"
    assert stored["num_blocks"] == 3
    assert stored["model"]["fingerprint"] == loaded_of("llama").fingerprint
    templates = [stored["template"], *stored["auxiliary_templates"]]
    assert [each["fingerprint"] for each in templates] == [
        template.fingerprint for template in method.templates
    ]


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_saved_as_numbers(tmp_path, method):
    """What a later version takes for its defaults must not change these vectors."""
    encoder = encoder_of(method=method)
    encoder.save_settings(tmp_path)
    found = read_settings(tmp_path)
    parameters = encoder.parameters
    assert (found.layer, found.block, found.strength) == (
        parameters.layer,
        parameters.block,
        parameters.strength,
    )
    assert Encoder(loaded_of("llama"), found).parameters == parameters


def test_another_method_forgets_the_parameters_of_the_old_one():
    settings = EncoderSettings(method="cp", layer=3, block=1, strength=0.25, max_tokens=99)
    assert settings.with_method("cp") is settings
    assert settings.with_method(None) is settings
    assert settings.with_method("ke") == EncoderSettings(method="ke", max_tokens=99)


FORMAT_1 = {
    "format": 1,
    "method": "prompteol",
    "max_tokens": 200,
    "normalize": True,
    "truncate_dim": None,
    "adapter_scale": 0.5,
    "pooling": "last",
    "layer": -1,
    "template": {"name": "prompteol", "clean": True, "fingerprint": "b759c5c1b236"},
    "dtype": "float32",
    "dim": 576,
}


def test_files_of_the_first_format_can_be_read(tmp_path):
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(FORMAT_1))
    found = read_settings(tmp_path)
    assert found == EncoderSettings(max_tokens=200, adapter_scale=0.5, layer=-1)
    np.testing.assert_array_equal(
        Encoder(loaded_of("llama"), found).encode(TEXTS), encoder_of().encode(TEXTS)
    )


def test_files_of_a_later_format_are_refused(tmp_path):
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(FORMAT_1 | {"format": 3}))
    with pytest.raises(ModelError, match="written by a later version"):
        read_settings(tmp_path)


def test_an_adapter_made_elsewhere_gets_the_default_settings(tmp_path):
    assert read_settings(tmp_path) == EncoderSettings()


def spoil(folder, change):
    encoder_of().save_settings(folder)
    stored = json.loads((folder / SETTINGS_FILE).read_text())
    change(stored)
    (folder / SETTINGS_FILE).write_text(json.dumps(stored))


def test_another_version_of_the_template_is_refused(tmp_path):
    spoil(tmp_path, lambda stored: stored["template"].update(fingerprint="0" * 12))
    with pytest.raises(ModelError, match="another version of its template") as caught:
        read_settings(tmp_path)
    assert caught.value.problems[0].place == str(tmp_path / SETTINGS_FILE)


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop("method"),
        lambda stored: stored.update(method="of-a-later-version"),
        lambda stored: stored.update(method=["prompteol"]),
        lambda stored: stored.update(template=None),
        lambda stored: stored.pop("template"),
        lambda stored: stored.update(max_tokens="512"),
        lambda stored: stored.update(normalize="no"),
        lambda stored: stored.update(adapter_scale=None),
        lambda stored: stored.update(truncate_dim="7"),
        lambda stored: stored.update(layer=None),
        lambda stored: stored.update(layer=1.5),
        lambda stored: stored.update(block="2"),
        lambda stored: stored.pop("strength"),
        lambda stored: stored.update(auxiliary_templates=None),
        lambda stored: stored.update(format="2"),
    ],
    ids=lambda change: None,
)
def test_settings_that_make_no_sense_are_refused(tmp_path, change):
    spoil(tmp_path, change)
    with pytest.raises(ModelError) as caught:
        read_settings(tmp_path)
    assert caught.value.problems[0].place == str(tmp_path / SETTINGS_FILE)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'"text"'])
def test_files_that_are_no_settings_are_refused(tmp_path, content):
    (tmp_path / SETTINGS_FILE).write_bytes(content)
    with pytest.raises(ModelError, match=r"encoder\.json"):
        read_settings(tmp_path)


@pytest.fixture
def run_folder(tmp_path):
    """A model folder, and a run folder with an adapter for it and settings of its own."""
    write_tiny_folder(tmp_path / "base")
    loaded = put_adapter(Encoder.load(tmp_path / "base").loaded)
    save_adapter(tmp_path / "run", adapter_weights(loaded.model), LORA, loaded)
    Encoder(loaded, EncoderSettings(max_tokens=200)).save_settings(tmp_path / "run")
    return tmp_path / "run", Encoder(loaded).encode(TEXTS)


def test_a_run_folder_loads_with_base_adapter_and_settings(run_folder):
    folder, expected = run_folder
    encoder = Encoder.load(folder)
    assert encoder.settings == EncoderSettings(max_tokens=200, layer=-1)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)


def test_base_and_adapter_may_be_named_apart(run_folder):
    folder, expected = run_folder
    encoder = Encoder.load(folder.parent / "base", adapter_path=folder)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)


def test_given_settings_go_before_stored_ones(run_folder):
    encoder = Encoder.load(run_folder[0], settings=EncoderSettings(adapter_scale=0.0))
    np.testing.assert_array_equal(
        encoder.encode(TEXTS), Encoder.load(run_folder[0].parent / "base").encode(TEXTS)
    )


def test_whole_numbers_make_the_same_vectors_as_their_fractions():
    one, other = (Encoder(adapted(), EncoderSettings(adapter_scale=scale)) for scale in (1, 1.0))
    assert one.vectors_key == other.vectors_key
    one, other = (encoder_of(method="cp", block=1, strength=strength) for strength in (1, 1.0))
    assert one.vectors_key == other.vectors_key
