"""A bridge to lm-evaluation-harness: its tasks on our models, adapter and dial included.

mlx-lm's own bridge loads no adapter and scores one continuation at a time. Needs the extra
`lm-eval`; nothing else imports this module.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sempa_mlx.errors import DataError, Problem, UsageError
from sempa_mlx.evaluation.benchmarks import Figure
from sempa_mlx.evaluation.likelihood import BATCH_TOKENS, LikelihoodRows
from sempa_mlx.evaluation.means import Mean
from sempa_mlx.evaluation.worked import MAX_TOKENS
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.generate import continue_greedily
from sempa_mlx.model.head import max_positions
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.lora import dialled

DEFAULT_POSITIONS = 2048  # of a model that does not say how many it takes, as the harness has it
BOOTSTRAPS = 1000  # for metrics that are no means; the errors of means are exact
HEAD_TOKENS, MANY_ROWS = 64, 8  # rows begin alike if that many share as many tokens
SHOTS = {"gsm8k_cot": 8, "mmlu": 5, "hellaswag": 0, "drop": 3, "truthfulqa_mc1": 0}  # SemPA's

_Encoded = tuple[tuple[str, str], list[int], list[int]]  # texts, context, continuation


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A loaded model as the harness wants it; the harness's own code encodes texts in pairs."""

    def __init__(
        self, loaded: LoadedModel, *, scale: float = 1.0, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        """Wrap a model; its adapter, if it has one, works at `scale`."""
        super().__init__()
        self.tokenizer = loaded.tokenizer._tokenizer
        self._loaded, self._scale, self._batch_tokens = loaded, scale, batch_tokens

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text; it also stands before a text without context."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return the token that stands before a text without context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def max_length(self) -> int:
        """Return how many tokens the model takes."""
        known = max_positions(self._loaded.model)
        return DEFAULT_POSITIONS if math.isinf(known) else int(known)

    @property
    def tokenizer_name(self) -> str:
        """Return what tells the tokenizer in caches of requests."""
        return self._loaded.location.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_others: object
    ) -> list[int]:
        """Encode a text; names of control tokens become tokens, as a chat template needs it."""
        begin = self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (begin and string.startswith(begin))
        encoded = self.tokenizer(string, add_special_tokens=add_special_tokens)
        return list(encoded["input_ids"])

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render turns as the model's chat template does."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[_Encoded], **_others: object
    ) -> list[tuple[float, bool]]:
        """Score encoded requests; those with the same context are one row, as far as it goes."""
        members: dict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
        seen: Counter[tuple[int, ...]] = Counter()  # tokens that follow each context
        for index, (_, tokens, continuation) in enumerate(requests):
            context = tuple(tokens)
            members[context, seen[context] // self._batch_tokens].append(index)
            seen[context] += len(continuation)
        rows = [
            TokenRow(context, tuple(tuple(requests[index][2]) for index in indices))
            for (context, _), indices in members.items()
        ]
        scoring = LikelihoodRows(
            self._loaded, rows, _sections(rows), batch_tokens=self._batch_tokens
        )
        found: dict[int, tuple[float, bool]] = {}
        with dialled(self._loaded.model, self._scale):
            for indices, values in zip(members.values(), scoring.score(), strict=True):
                pairs = zip(values.sums.tolist(), values.is_greedy.tolist(), strict=True)
                found |= dict(zip(indices, pairs, strict=True))
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of whole texts, each token with all the context there is."""
        del disable_tqdm
        windows: list[_Encoded] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((("", ""), context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += score
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts greedily.

        Raises:
            UsageError: a task wants to sample.
        """
        del disable_tqdm
        alike: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(index)
        found: dict[int, str] = {}
        for indices in alike.values():
            wanted = normalize_gen_kwargs(requests[indices[0]].args[1], MAX_TOKENS)
            if wanted["do_sample"]:
                raise UsageError(f"the task wants to sample ({wanted}); only greedy is offered")
            longest = wanted["max_gen_toks"]
            room = max(1, self.max_length - longest)
            prompts = [self.tok_encode(requests[index].args[0])[-room:] for index in indices]
            with dialled(self._loaded.model, self._scale):
                texts = continue_greedily(
                    self._loaded, prompts, max_tokens=longest, stops=wanted["until"]
                )
            found |= dict(zip(indices, texts, strict=True))
        return [found[index] for index in range(len(requests))]


def _sections(rows: Sequence[TokenRow]) -> list[str]:
    """Name rows after their beginning where many share it, as solved examples of a task do."""
    heads = [repr(row.prompt[:HEAD_TOKENS]) for row in rows]
    counts = Counter(heads)
    return [head if counts[head] >= MANY_ROWS else "" for head in heads]


def harness_figures(
    loaded: LoadedModel,
    tasks: Sequence[str],
    *,
    scale: float = 1.0,
    limit: int | None = None,
    include: Path | None = None,
) -> list[Figure]:
    """Run tasks of the harness by name, on its own data, with the shots of SemPA's paper.

    Args:
        loaded: with an adapter or without.
        tasks: the harness's names; those that `SHOTS` does not hold get their own default.
        scale: of the adapter.
        limit: take the first n documents of every task.
        include: a folder with more task files.

    Returns:
        A figure a metric and filter, named `metric` or `metric (filter)`.

    Raises:
        UsageError: the harness has no such task, or the task wants to sample.
        DataError: the task's data cannot be had.
    """
    manager = TaskManager(include_path=include)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UsageError(
            [Problem(f"lm-eval has no task {task!r}", fix="lm-eval ls tasks") for task in unknown]
        )
    model = HarnessModel(loaded, scale=scale)
    return [
        figure
        for task in tasks
        for figure in _figures(task, _evaluated(model, task, manager, limit))
    ]


def _evaluated(
    model: HarnessModel, task: str, manager: TaskManager, limit: int | None
) -> dict[str, Any]:
    try:
        found = simple_evaluate(
            model,
            tasks=[task],
            num_fewshot=SHOTS.get(task),
            limit=limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=BOOTSTRAPS,
        )
    except OSError as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        fix = "lm-eval loads it from the Hugging Face Hub or its cache: go online once"
        raise DataError(Problem(f"no data for {task}", evidence=reason, fix=fix)) from error
    return dict(found)


def _figures(task: str, found: dict[str, Any]) -> Iterator[Figure]:
    """Read the harness's results: `acc,none` and beside it `acc_stderr,none`."""
    values = found.get("groups", {}).get(task) or found["results"][task]
    shots = max(found["n-shot"].values(), default=0)
    for key, value in values.items():
        metric, _, reading = key.partition(",")
        if not reading or metric.endswith("_stderr"):
            continue
        error = values.get(f"{metric}_stderr,{reading}")
        name = metric if reading == "none" else f"{metric} ({reading})"
        known = float(error) if isinstance(error, int | float) else math.nan
        yield Figure(task, name, shots, Mean(float(value), known, values["sample_len"]))
