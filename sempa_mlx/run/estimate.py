"""What a run will take, told before any weight is loaded: tokens, memory and time.

Operations are counted from the shapes of the matrices and the tokens of the rows. Time needs a
rate: that of a matrix product measured now, times the share of it that training was seen to reach
(README, pairs per second). Memory follows a formula fitted to the peaks of small Llamas; on
SmolLM2-135M it was within 25 % of what trying finds. The header of a run has that better figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sempa_mlx import runtime
from sempa_mlx.config import SempaConfig
from sempa_mlx.config_terms import SENTENCE_TERMS
from sempa_mlx.data.batching import batches_by_length
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.evaluation.sts import distinct_sentences
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.forward import PLAIN_MASK_RANK, common_prefix
from sempa_mlx.model.head import BLOCK_ROWS
from sempa_mlx.model.scoring import Scorer
from sempa_mlx.model.skeleton import Shape, load_skeleton, measure_shape
from sempa_mlx.run.inputs import RunData
from sempa_mlx.run.prepare import tokenize_rows
from sempa_mlx.run.terms import reads_completions, sentence_rows
from sempa_mlx.training.schedule import plan_steps
from sempa_mlx.training.sentence_term import SentenceRow
from sempa_mlx.training.terms import Objective
from sempa_mlx.training.trainer import micro_batch_tokens

CPU_SHARE = 0.4  # of the rate of matrix products, reached by a step on a CPU (README: 32 to 44 %)
KEPT_WIDTHS = 1.2  # activations kept for the backward pass, in inputs and outputs of linear layers
BLOCK_WIDTHS = 3.0  # the same for the one block that is computed again, under grad_checkpoint
HEAD_COPIES = 6  # of the logits of one block of the head
ADAPTER_COPIES = 5  # the adapter, its gradient, two moments, the best one so far
PROBE_SIZE = 1024  # of the matrix product that is timed: less than a second even where slow


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take.

    `operations` are floating-point operations of training, of the reference and of evaluations;
    `gflops` is the measured rate of a matrix product. Costs are None where they cannot be told.
    """

    model: str
    rows: int
    num_too_long: int
    steps: int
    shared_tokens: int
    tokens: int
    trained: int | None = None
    total: int | None = None
    memory_gb: float | None = None
    operations: float | None = None
    gflops: float | None = None

    @property
    def seconds(self) -> float | None:
        """The expected time; on a GPU the least, since the share reached there is not known."""
        if self.operations is None or self.gflops is None:
            return None
        share = 1.0 if runtime.is_gpu() else CPU_SHARE
        return self.operations / (self.gflops * 1e9 * share)


def estimate_run(config: SempaConfig, data: RunData) -> Estimate:
    """Estimate a run whose early stop does not happen, on one process.

    Raises:
        ModelError: the model or its layers cannot be found.
        DataError: no row fits `model.max_tokens`.
    """
    loaded = load_skeleton(config.model)
    tokenized = tokenize_rows(config, data.records, loaded, str(data.train.path))
    encoder = Encoder(loaded, EncoderSettings(max_tokens=config.model.max_tokens))
    sentences = sentence_rows(tokenized.records, encoder) if _reads_sentences(config) else []
    work = _Work(config, tokenized.rows, sentences)
    found = Estimate(
        f"{loaded.location.name} ({loaded.location.origin}), {runtime.dtype_name(loaded.dtype)}",
        rows=len(tokenized.rows),
        num_too_long=tokenized.num_too_long,
        steps=len(work.plan),
        shared_tokens=work.scorer.shared if reads_completions(config) else 0,
        tokens=work.all_tokens,
    )
    packed = runtime.is_gpu() and config.model.dtype == "auto"
    shape = measure_shape(loaded, config.lora, packed=packed)
    if shape is None:
        return found
    dev_tokens = sum(map(len, encoder.tokenize(distinct_sentences([data.dev_task]))))
    return replace(
        found,
        trained=shape.trained,
        total=shape.total,
        memory_gb=work.memory_gb(shape, loaded.dtype.size),
        operations=work.operations(shape) + work.evaluations * 2.0 * shape.matrices * dev_tokens,
        gflops=runtime.matmul_gflops(PROBE_SIZE, loaded.dtype, repeats=2),
    )


def _reads_sentences(config: SempaConfig) -> bool:
    return not config.objective.terms.keys().isdisjoint(SENTENCE_TERMS)


class _Work:
    """What is computed in a run: rows in passes, and how often."""

    def __init__(
        self, config: SempaConfig, rows: Sequence[TokenRow], sentences: Sequence[SentenceRow]
    ) -> None:
        self.config, self.rows, self.sentences = config, rows, sentences
        plain = config.train.scoring == "plain"
        shared = 0 if plain else common_prefix([row.prompt for row in rows])
        self.scorer = Scorer(shared, None if plain else PLAIN_MASK_RANK)
        self.lengths = [self.scorer.own_tokens(row) for row in rows]
        self.plan = plan_steps(self.lengths, config.train)
        budget = micro_batch_tokens(config.train)
        self.passes = [
            members
            for batch in self.plan
            for members in batches_by_length(batch, self.lengths.__getitem__, budget)
        ]
        self.objective = Objective(config.objective)

    @property
    def trained_tokens(self) -> int:
        """Tokens that are run forward and backward for completions, padding left out."""
        if not self.objective.is_used:
            return 0
        return sum(self._tokens(members) for members in self.passes)

    @property
    def all_tokens(self) -> int:
        """Tokens that the terms run forward and backward, each its own, padding left out."""
        terms = self.config.objective.terms
        sentences = self._sentence_tokens() if _reads_sentences(self.config) else 0
        return self.trained_tokens + sentences + (self._kl_tokens()[0] if "kl" in terms else 0)

    @property
    def evaluations(self) -> int:
        """How often the dev set is embedded."""
        settings, steps = self.config.eval, len(self.plan)
        scored = 1 + -(-steps // settings.every)
        scales = len(settings.dial or ()) if settings.metric == "spearman" else 0
        return scored * (1 + scales) if settings.dial_always else scored + scales

    def operations(self, shape: Shape) -> float:
        """Count what training takes: forward 2, backward 2 for each weight and token."""
        train, terms = self.config.train, self.config.objective.terms
        policy = (6.0 if train.grad_checkpoint else 4.0) * shape.matrices + 6.0 * shape.trained
        head = float(shape.hidden * shape.vocabulary)
        scored = sum(self._scored(members) for members in self.passes)
        total = policy * self.trained_tokens + 4.0 * head * scored * self.objective.is_used
        if self.objective.needs_reference:
            again = 1.0 if train.reference == "online" else self._first_share()
            total += again * (2.0 * shape.matrices * self.trained_tokens + 2.0 * head * scored)
        if _reads_sentences(self.config):
            # A pass without a graph, then one with it (gradient caching).
            total += (policy + 2.0 * shape.matrices) * self._sentence_tokens()
        if "kl" in terms:
            tokens = self._kl_tokens()
            total += (policy + 2.0 * shape.matrices) * tokens[0] + 6.0 * head * tokens[1]
        return total

    def memory_gb(self, shape: Shape, bytes_a_value: int) -> float:
        """Tell the height of the largest pass, on top of the weights."""
        budget = micro_batch_tokens(self.config.train)
        widest = 0
        if reads_completions(self.config):
            sizes = (len(each) * max(self.lengths[row] for row in each) for each in self.passes)
            widest = max(sizes) + self.scorer.shared
        if _reads_sentences(self.config):
            widest = max(widest, min(budget, max(self._step_tokens())))
        if "kl" in self.config.objective.terms and self.config.objective.kl_text is not None:
            widest = max(widest, min(budget, self.config.objective.kl_tokens))
        kept = KEPT_WIDTHS * shape.widths
        if self.config.train.grad_checkpoint:
            kept = shape.hidden * shape.num_blocks + BLOCK_WIDTHS * shape.widest
        activations = kept * widest * bytes_a_value
        head = 4.0 * HEAD_COPIES * BLOCK_ROWS * shape.vocabulary
        adapter = 4.0 * ADAPTER_COPIES * shape.trained
        return shape.loaded_gb + (activations + head + adapter) / runtime.GB

    def _tokens(self, members: Sequence[int]) -> int:
        return self.scorer.shared + sum(self.lengths[row] for row in members)

    def _scored(self, members: Sequence[int]) -> int:
        return sum(len(ids) for row in members for ids in self.rows[row].completions)

    def _first_share(self) -> float:
        """Return the share of row visits that are the first of their row."""
        visits = [row for batch in self.plan for row in batch]
        return len(set(visits)) / len(visits)

    def _sentence_tokens(self) -> int:
        return sum(self._step_tokens())

    def _step_tokens(self) -> list[int]:
        """Return the tokens of the sentences of each step."""
        sizes = [sum(map(len, (row.anchor, *row.candidates))) for row in self.sentences]
        return [sum(sizes[row] for row in batch) for batch in self.plan]

    def _kl_tokens(self) -> tuple[int, int]:
        """Return the tokens that the kl term runs, and those that meet the head."""
        objective = self.config.objective
        if objective.kl_text is not None:
            tokens = objective.kl_tokens * len(self.plan)
            return tokens, tokens
        return sum(map(self._tokens, self.passes)), sum(map(self._scored, self.passes))
