"""`sempa-mlx paraphrase`."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sempa_mlx.commands.chosen_encoder import load_encoder, run_folder, with_run_as_run
from sempa_mlx.commands.embed import STREAM, EmbedRequest, text_source
from sempa_mlx.commands.vectors import warn_cut
from sempa_mlx.console import Console
from sempa_mlx.data.readers import read_lines
from sempa_mlx.errors import DataError, Problem, UsageError
from sempa_mlx.files import refuse_existing, replacing

if TYPE_CHECKING:
    from sempa_mlx.config import DataConfig
    from sempa_mlx.encoder.paraphrase import Paraphrased, Paraphraser, ParaphraseSettings

TOGETHER = 32  # texts
ENDING = ".jsonl"
UNTOUCHED = "nothing was generated"


@dataclass(frozen=True, slots=True)
class ParaphraseRequest:
    """What to paraphrase, with what and how; None leaves it to defaults and the run folder."""

    text: str
    out: Path | None
    model: str | None
    adapter_path: Path | None
    k: int
    temperature: float
    top_p: float
    max_tokens: int | None
    template: str | None
    adapter_scale: float
    seed: int


def run_paraphrase(console: Console, request: ParaphraseRequest, *, force: bool) -> None:
    """Paraphrase one text, or each line of stdin, onto stdout or into a file."""
    embed, settings = _settings(request)
    if request.out is not None:
        _check_out(request.out, force=force)
    with tempfile.TemporaryDirectory() as spool:
        lines = _source(console, request.text, Path(spool))
        count = _count_texts(lines())
        paraphraser = _load(console, embed, settings)
        paraphraser.check((line.place, line.text) for line in lines())
        tally = _Tally(settings.k)
        results = _results(paraphraser, lines(), tally)
        if request.out is None:
            _to_stdout(console, results, count)
        else:
            _to_file(console, results, count, request.out)
    warn_cut(console, paraphraser.num_cut, paraphraser.encoder.settings.max_tokens)
    tally.tell(console)
    if request.out is not None:
        console.say(f"{tally.num_found} paraphrases of {tally.num_texts} texts")
        console.result(str(request.out))
        counts = {"texts": tally.num_texts, "paraphrases": tally.num_found}
        console.document({"path": str(request.out), **counts, "short": tally.num_short})


def _settings(request: ParaphraseRequest) -> "tuple[EmbedRequest, ParaphraseSettings]":
    """Return what to load, and how to paraphrase: by the run's own prompt unless told otherwise."""
    from sempa_mlx.encoder.paraphrase import ParaphraseSettings

    named = EmbedRequest(
        *("", None, None, request.model, request.adapter_path, None, None, None, None)
    )
    embed = with_run_as_run(named)
    data = _prompt_settings(run_folder(embed))
    settings = ParaphraseSettings(
        request.k,
        request.temperature,
        request.top_p,
        request.max_tokens,
        request.template or data.template,
        data.system,
        request.adapter_scale,
        request.seed,
    )
    return embed, settings


def _prompt_settings(run: Path | None) -> "DataConfig":
    """Return the settings that a run was trained with, or the defaults."""
    from sempa_mlx.config import SempaConfig
    from sempa_mlx.config_resolve import resolve_config
    from sempa_mlx.run.folder import CONFIG_COPY

    if run is not None and (run / CONFIG_COPY).is_file():
        return resolve_config(run / CONFIG_COPY).config.data
    return SempaConfig().data


def _check_out(out: Path, *, force: bool) -> None:
    if out.suffix != ENDING:
        fix = f"name a file that ends in {ENDING}"
        raise UsageError(Problem("JSON lines are written", str(out), fix=fix))
    refuse_existing(out, force=force)


def _source(console: Console, text: str, spool: Path) -> "Callable[[], Iterator[_Line]]":
    """Return what yields the texts, as often as it is called.

    Raises:
        UsageError: the text is empty or not one, or stdin is a terminal.
    """
    if text == STREAM:
        path = text_source(text, spool)
        return lambda: (_Line(f"stdin:{line.number}", line.text) for line in read_lines(path))
    if not text.strip():
        raise UsageError("the text is empty", state=UNTOUCHED)
    if any("\ud800" <= char <= "\udfff" for char in text):  # how Python passes bytes on
        raise UsageError("the text is not UTF-8", state=UNTOUCHED)
    if _names_file(text):
        console.warn(f"{text} is taken as a text; to read the file: paraphrase - < {text}")
    return lambda: iter([_Line("TEXT", text)])


def _names_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False


def _count_texts(lines: "Iterator[_Line]") -> int:
    """Count the lines, which also finds a bad byte before the model is loaded."""
    texts = [bool(line.text.strip()) for line in lines]
    if not any(texts):
        raise DataError(Problem("no text", "stdin", fix="give one a line"), state=UNTOUCHED)
    return len(texts)


def _load(console: Console, embed: EmbedRequest, settings: "ParaphraseSettings") -> "Paraphraser":
    from sempa_mlx.encoder.paraphrase import Paraphraser

    encoder = load_encoder(console, embed)
    if run_folder(embed) is not None:
        console.say(f"generating with the adapter at scale {settings.adapter_scale:g}")
    return Paraphraser(encoder, settings)


def _results(
    paraphraser: "Paraphraser", lines: "Iterator[_Line]", tally: "_Tally"
) -> "Iterator[list[Paraphrased]]":
    while texts := [line.text for line in islice(lines, TOGETHER)]:
        found = paraphraser.paraphrase(texts)
        tally.add(found)
        yield found


def _to_stdout(console: Console, results: "Iterator[list[Paraphrased]]", count: int) -> None:
    """Print as results come; JSON is one document at the end."""
    found: list[Paraphrased] = []
    while len(found) < count:
        done = f" {len(found)}/{count}" if count > 1 else ""
        with console.working(f"paraphrasing{done}"):
            new = next(results)
        for each in new:
            _show(console, each)
        found += new
    console.document([_as_document(each) for each in found])


def _show(console: Console, found: "Paraphrased") -> None:
    if console.mode == "human" and found.num_draws:
        console.result(f"\n{found.text}")
    for each in found.paraphrases:
        similarity = "" if console.mode == "quiet" else f"  {each.similarity:.2f}  "
        console.result(similarity + each.text)


def _to_file(
    console: Console, results: "Iterator[list[Paraphrased]]", count: int, out: Path
) -> None:
    with (
        replacing(out) as temporary,
        temporary.open("w", encoding="utf-8") as stream,
        console.progress("paraphrasing", count, "texts") as advance,
    ):
        for found in results:
            for each in found:
                stream.write(json.dumps(_as_document(each), ensure_ascii=False) + "\n")
            advance(len(found))


def _as_document(found: "Paraphrased") -> dict[str, Any]:
    return {"text": found.text, "paraphrases": [asdict(each) for each in found.paraphrases]}


class _Line(NamedTuple):
    """A text, and where it stands."""

    place: str
    text: str


@dataclass(slots=True)
class _Tally:
    """What came of the texts; short are those with fewer paraphrases than were asked for."""

    k: int
    num_texts: int = 0
    num_found: int = 0
    num_short: int = 0
    num_draws: int = 0  # for short texts, as the next
    num_endless: int = 0

    def add(self, results: "Sequence[Paraphrased]") -> None:
        """Count results."""
        self.num_texts += len(results)
        self.num_found += sum(len(each.paraphrases) for each in results)
        short = [each for each in results if each.num_draws and len(each.paraphrases) < self.k]
        self.num_short += len(short)
        self.num_draws += sum(each.num_draws for each in short)
        self.num_endless += sum(each.num_endless for each in short)

    def tell(self, console: Console) -> None:
        """Warn if there are short texts, and say why."""
        if not self.num_short:
            return
        if self.num_texts == 1:
            what = f"only {self.num_found} of {self.k} distinct paraphrases"
        else:
            what = f"{self.num_short} texts have fewer than {self.k} distinct paraphrases"
        draws = "1 draw" if self.num_draws == 1 else f"{self.num_draws} draws"
        endless = f", {self.num_endless} without an end in --max-tokens" if self.num_endless else ""
        console.warn(f"{what} ({draws}{endless})")
