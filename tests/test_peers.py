"""Other libraries run our encoder and our coders and find what we find; mteb needs `peers`."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.evaluation.quantised import int8_levels
from sempa_mlx.evaluation.sentence_model import SentenceModel
from sempa_mlx.evaluation.sts import evaluate_sts
from sempa_mlx.export.sparse_autoencoder import export_sparse_autoencoder
from tests.encoder.test_sparse import make_coder, make_vectors
from tests.tiny import tiny_loaded

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

NOUNS = ("cat", "dog", "man", "bird", "boy", "fish")
PAIRS = tuple(
    StsPair(float(score), f"A {NOUNS[i % 6]} runs {i}", f"The {NOUNS[(i * i) % 6]} sleeps {i // 2}")
    for i, score in enumerate(np.random.default_rng(0).uniform(0, 5, 40).round(1))
)
LEFT, RIGHT = [p.sentence1 for p in PAIRS], [p.sentence2 for p in PAIRS]
SCORES = [p.score for p in PAIRS]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(tiny_loaded())


@pytest.fixture(scope="module")
def expected(encoder):
    (score,) = evaluate_sts(encoder, [StsTask("own", "file", PAIRS)])
    return score.spearman


def test_sentence_transformers_evaluator_agrees(encoder, expected):
    evaluation = pytest.importorskip("sentence_transformers.evaluation")
    model = SentenceModel(encoder)
    evaluator = evaluation.EmbeddingSimilarityEvaluator(LEFT, RIGHT, SCORES, name="own")
    found = evaluator(model)
    assert found["own_spearman_cosine"] == pytest.approx(expected, abs=1e-6)
    assert model.model_card_data.metrics == found


def test_the_evaluators_own_cut_is_obeyed(encoder):
    evaluation = pytest.importorskip("sentence_transformers.evaluation")
    evaluator = evaluation.EmbeddingSimilarityEvaluator(LEFT, RIGHT, SCORES, truncate_dim=4)
    whole, cut = encoder.encode(LEFT + RIGHT), evaluator(SentenceModel(encoder))
    short = whole[:, :4] / np.linalg.norm(whole[:, :4], axis=1, keepdims=True)
    dots = (short[: len(LEFT)] * short[len(LEFT) :]).sum(axis=1)
    assert cut["spearman_cosine"] == pytest.approx(spearmanr(dots, SCORES)[0], abs=1e-6)


def test_tensors_are_given_on_request(encoder):
    torch = pytest.importorskip("torch")
    found = SentenceModel(encoder).encode(LEFT[:3], convert_to_tensor=True)
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), encoder.encode(LEFT[:3]))


@pytest.mark.peers
def test_mteb_agrees(encoder, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset, DatasetDict
    from mteb.mocks.mock_tasks import MockSTSTask

    class OwnTask(MockSTSTask):
        def load_data(self, **_options):
            columns = {"sentence1": LEFT, "sentence2": RIGHT, "score": SCORES}
            self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
            self.data_loaded = True

    model = SentenceModel(encoder)
    assert isinstance(model, mteb.models.EncoderProtocol)
    result = mteb.evaluate(model, OwnTask(), cache=None, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    assert scores["cosine_spearman"] == pytest.approx(expected, abs=1e-6)
    assert scores["spearman"] == pytest.approx(expected, abs=1e-6)
    assert result.model_revision == encoder.vectors_key


@pytest.mark.parametrize("seed", range(5))
def test_an_exported_coder_gives_the_same_codes(tmp_path, seed):
    torch = pytest.importorskip("torch")
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    coder = make_coder(dim=12, hidden=50, k=3 + seed, seed=seed)
    assert np.abs(coder.centre).min() > 0
    assert np.all(np.asarray(coder.scale) != 1)
    vectors = 3 * make_vectors(60, 12, seed=seed)
    module = modules.SparseAutoEncoder.load(str(export_sparse_autoencoder(coder, tmp_path / "x")))
    assert (module.k, module.hidden_dim, module.input_dim) == (coder.k, 50, 12)
    module.eval()
    with torch.inference_mode():
        for k in (None, 2, 9):
            features = {"sentence_embedding": torch.from_numpy(vectors)}
            found = module(features, max_active_dims=k)["sentence_embedding"].numpy()
            expected = coder.encode(vectors, k).toarray()
            assert np.array_equal(found > 0, expected > 0)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "again").mkdir()
    module.save(str(tmp_path / "again"))
    from safetensors.numpy import load_file

    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("x", "again"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    config = [(tmp_path / name / "config.json").read_text().strip() for name in ("x", "again")]
    assert config[0] == config[1]


def test_bytes_are_those_of_sentence_transformers():
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    vectors, fit = make_vectors(200, 16, seed=1), make_vectors(90, 16, seed=2)
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, fit)]
    theirs = quantization.quantize_embeddings(units[0], "int8", calibration_embeddings=units[1])
    assert np.array_equal(int8_levels(vectors, fit), theirs)
