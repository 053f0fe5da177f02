"""Paraphrases: drawn from a language model, ranked by the encoder of the same weights.

A draw depends on the seed, the text and its own number, never on what else runs. The paraphrases of
a text are the first k of its draws that are distinct: two are alike, or one is the text itself, if
they differ in case, blanks and punctuation only.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from sempa_mlx.data.answers import as_sentence
from sempa_mlx.data.near_duplicates import normal_form
from sempa_mlx.data.records import Message
from sempa_mlx.data.templates import SYSTEM_PROMPT, paraphrase_prompt
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.postprocess import at_unit_length
from sempa_mlx.errors import DataError, Problem, UsageError
from sempa_mlx.model.generate import Continuation, Start, continue_all
from sempa_mlx.model.head import max_positions
from sempa_mlx.model.lora import dialled
from sempa_mlx.model.prompts import ChatRenderer, tokenize_bare
from sempa_mlx.model.sampling import COLDEST, draw_from

ROUNDS = 4  # of k draws each, at most
SPARE_TOKENS = 32  # beyond twice those of the text


@dataclass(frozen=True, slots=True)
class ParaphraseSettings:
    """How many paraphrases, and how they are drawn.

    Attributes:
        k: paraphrases of a text; 1 if the temperature is 0, which always says the same.
        temperature: >= 0; divides the log-probabilities.
        top_p: above 0, at most 1; tokens beyond the fewest with this probability are never drawn.
        max_tokens: a longer draw is dropped, as it has no end; None: twice the text's and 32.
        template: of the prompt, P1 to P5.
        system: system text before the prompt; None for no system turn.
        adapter_scale: of the adapter while it generates; 0 is the base.
        seed: the same one gives the same draws.
    """

    k: int = 3
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int | None = None
    template: str = "P1"
    system: str | None = SYSTEM_PROMPT
    adapter_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, all of it at once."""
        faults = []
        if not math.isfinite(self.adapter_scale):
            faults.append(Problem(f"adapter_scale is {self.adapter_scale}", fix="it is a number"))
        if self.k < 1:
            faults.append(Problem(f"k is {self.k}", fix="ask for 1 or more"))
        if not 0 <= self.temperature < math.inf:
            fix = "it is a number from 0, such as 0.8"
            faults.append(Problem(f"temperature is {self.temperature:g}", fix=fix))
        if not 0 < self.top_p <= 1:
            faults.append(Problem(f"top_p is {self.top_p:g}", fix="it lies above 0, up to 1"))
        if self.max_tokens is not None and self.max_tokens < 1:
            faults.append(Problem(f"max_tokens is {self.max_tokens}", fix="ask for 1 or more"))
        if 0 <= self.temperature <= COLDEST and self.k > 1:
            what = f"temperature {self.temperature:g} always says the same"
            what += f", which cannot give {self.k} paraphrases"
            faults.append(Problem(what, fix="ask for k 1, or for a temperature above 0"))
        try:
            paraphrase_prompt(self.template, "")
        except UsageError as error:
            faults += error.problems
        if faults:
            raise UsageError(faults, state="nothing was started")


@dataclass(frozen=True, slots=True)
class Paraphrase:
    """A paraphrase, and the cosine of its vector with that of its text."""

    text: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Paraphrased:
    """A text and its paraphrases, the most similar first; fewer than k if no more were found.

    `num_draws` were made in all, of which `num_endless` had no end within `max_tokens`.
    """

    text: str
    paraphrases: tuple[Paraphrase, ...]
    num_draws: int
    num_endless: int


@dataclass(slots=True)
class _Drafts:
    """What has been drawn for one text."""

    text: str
    prompt: tuple[int, ...]
    max_tokens: int
    found: list[str] = field(default_factory=list)
    num_draws: int = 0
    num_endless: int = 0

    def take(self, draw: Continuation, k: int) -> None:
        """Count a draw, and keep it if it is a paraphrase that is still wanted."""
        self.num_draws += 1
        self.num_endless += not draw.is_ended
        text = as_sentence(draw.text)
        is_wanted = draw.is_ended and len(self.found) < k and any(map(str.isalnum, text))
        alike = {normal_form(each) for each in (self.text, *self.found)}
        if is_wanted and normal_form(text) not in alike:
            self.found.append(text)


class Paraphraser:
    """A model that paraphrases by itself and ranks by its embeddings."""

    def __init__(self, encoder: Encoder, settings: ParaphraseSettings) -> None:
        """Rank by `encoder` as it is; its model draws with the adapter as `settings` dial it."""
        self.encoder = encoder
        self.settings = settings
        self._loaded = encoder.loaded
        self._renderer = ChatRenderer(encoder.loaded.tokenizer)
        self._positions = max_positions(encoder.loaded.model)
        self.num_cut = 0  # texts of which the encoder saw the beginning only

    def check(self, texts: Iterable[tuple[str, str]]) -> None:
        """Make sure that the model can take every text, given as (place, text).

        Raises:
            DataError: a text is too long with its prompt and its paraphrase; every such text.
        """
        faults = []
        for place, text in texts:
            drafts = self._begin(text)
            needed = len(drafts.prompt) + drafts.max_tokens
            if needed > self._positions:
                what = f"needs {needed} tokens with prompt and answer, the model takes "
                faults.append(Problem(what + f"{self._positions:g}", place, fix="shorten the text"))
        if faults:
            raise DataError(faults, state="nothing was generated")

    def paraphrase(self, texts: Sequence[str]) -> list[Paraphrased]:
        """Paraphrase texts together, in input order; a text of blanks only has no paraphrases.

        Equal texts are paraphrased once.
        """
        drafts = {text: self._begin(text) for text in texts}
        rounds = ROUNDS if self.settings.temperature > COLDEST else 1
        for _ in range(rounds):
            self._draw([each for text, each in drafts.items() if text.strip()])
        ranked = self._rank(list(drafts.values()))
        return [ranked[text] for text in texts]

    def _begin(self, text: str) -> _Drafts:
        settings = self.settings
        user = Message("user", paraphrase_prompt(settings.template, text))
        system = () if settings.system is None else (Message("system", settings.system),)
        prompt = self._renderer.prompt((*system, user))
        (own,) = tokenize_bare([text], self._loaded.tokenizer)
        return _Drafts(text, prompt, settings.max_tokens or 2 * len(own) + SPARE_TOKENS)

    def _draw(self, drafts: Sequence[_Drafts]) -> None:
        """Draw k times for each text that has not k paraphrases yet."""
        settings = self.settings
        rows = [
            (each, each.num_draws + number)
            for each in drafts
            if len(each.found) < settings.k
            for number in range(settings.k)
        ]
        if not rows:
            return
        starts = []
        for each, number in rows:
            seed = _seed_of(settings.seed, each.text, number)
            draw = draw_from(seed, settings.temperature, settings.top_p)
            starts.append(Start(each.prompt, each.max_tokens, draw))
        with dialled(self._loaded.model, settings.adapter_scale):
            found = continue_all(self._loaded, starts)
        for (each, _), continuation in zip(rows, found, strict=True):
            each.take(continuation, settings.k)

    def _rank(self, drafts: Sequence[_Drafts]) -> dict[str, Paraphrased]:
        texts = [text for each in drafts for text in (each.text, *each.found)]
        found, num_cut = self.encoder.encode_counted(texts)
        self.num_cut += num_cut
        vectors = iter(at_unit_length(found))
        ranked = {}
        for each in drafts:
            anchor = next(vectors)
            scored = [Paraphrase(text, float(anchor @ next(vectors))) for text in each.found]
            scored.sort(key=lambda one: -one.similarity)
            counts = each.num_draws, each.num_endless
            ranked[each.text] = Paraphrased(each.text, tuple(scored), *counts)
        return ranked


def _seed_of(seed: int, text: str, number: int) -> int:
    """Return the seed of one draw of a text."""
    content = f"{seed} {number} {text}".encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")
