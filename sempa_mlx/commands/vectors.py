"""How vectors are made beside the method: options of several commands, put on an encoder."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sempa_mlx.console import Console
from sempa_mlx.errors import DataError, Problem, UsageError

if TYPE_CHECKING:
    from sempa_mlx.encoder.encoder import Encoder

FEW_TEXTS = 2048  # for what needs no covariance of all dimensions
WHITENING_RATIO = 8  # texts for each dimension
RECORD_FILES = (".jsonl", ".json", ".ndjson", ".csv")


@dataclass(frozen=True, slots=True)
class VectorOptions:
    """What the command line says of layers, tuned parameters and maps; None leaves it alone."""

    layer: int | None = None
    tuned: Path | None = None
    post: str | None = None
    post_fit: Path | None = None

    def check(self) -> None:
        """Find what cannot be meant before any model is loaded.

        Raises:
            UsageError: options that exclude each other, or no such map.
        """
        from sempa_mlx.encoder.postprocess import parse_kind

        if faults := self.faults():
            raise UsageError(faults, state="nothing was started")
        if self.post is not None and not self._names_file():
            parse_kind(self.post)

    def faults(self) -> list[Problem]:
        """Return options that exclude each other."""
        faults = []
        if self.layer is not None and self.tuned is not None:
            faults.append(Problem("--layer and --tuned both set the layer", fix="give one of them"))
        if self.post_fit is not None and self.post is None:
            fix = "add --post abtt, standardize or whiten"
            faults.append(Problem("--post-fit names texts, but nothing is fitted", fix=fix))
        return faults

    @property
    def suffix(self) -> str:
        """What tells a system under these options from others, for its name."""
        layer = "" if self.layer is None else f" layer {self.layer}"
        post = Path(self.post).stem if self.post and self._names_file() else self.post
        return layer + (" tuned" if self.tuned else "") + (f" {post}" if post else "")

    def _names_file(self) -> bool:
        return self.post is not None and self.post.endswith(".safetensors")

    def apply(self, console: Console, name: str, encoder: "Encoder") -> "Encoder":
        """Return the encoder under these options; `name` is what messages call it."""
        from sempa_mlx.encoder.encoder import Encoder
        from sempa_mlx.encoder.tuned import with_tuned

        if self.layer is not None or self.tuned is not None:
            # A map that came with the run folder is for the parameters of before.
            encoder = Encoder(encoder.loaded, replace(encoder.settings, post=None))
        if self.layer is not None:
            settings = replace(encoder.settings, layer=self.layer)
            encoder = Encoder(encoder.loaded, settings)
        elif self.tuned is not None:
            found = with_tuned(encoder, self.tuned)
            if found is None:
                console.warn(f"{name}: nothing is tuned for it in {self.tuned}")
            encoder = found or encoder
        if self.post is not None:
            encoder = self._mapped(console, name, encoder)
        return encoder

    def _mapped(self, console: Console, name: str, encoder: "Encoder") -> "Encoder":
        """Put the map of a file, or a map fitted now or before, after the encoder."""
        from sempa_mlx.encoder.encoder import Encoder
        from sempa_mlx.encoder.fitting import default_folder, fit_after
        from sempa_mlx.encoder.postprocess import parse_kind, read_post

        assert self.post is not None
        if self._names_file():
            post = read_post(Path(self.post))
            return Encoder(encoder.loaded, replace(encoder.settings, post=post))
        kind, components = parse_kind(self.post)
        wanted = WHITENING_RATIO * encoder.hidden_size if kind == "whiten" else FEW_TEXTS
        texts = list(dict.fromkeys(unlabelled_texts(self.post_fit, wanted, option="--post-fit")))
        with console.progress(f"fitting {kind}", len(texts), "texts") as advance:
            post, path = fit_after(
                encoder, texts, kind, components, folder=default_folder(), on_progress=advance
            )
        console.say(f"{name}: {kind} fitted to {post.num_texts} texts, kept in {path}")
        return Encoder(encoder.loaded, replace(encoder.settings, post=post))


def unlabelled_texts(path: Path | None, wanted: int, *, option: str) -> Iterator[str]:
    """Yield the texts to fit something to: those of the user's file, else the first anchors of NLI.

    Args:
        path: a text of one sentence a line, or preference rows, of which the anchors count.
        wanted: anchors of NLI to read.
        option: of the command line, that names the file.

    Raises:
        DataError: there is no such file, it has faults, or NLI is not at hand.
    """
    from sempa_mlx.data.preferences import read_preferences
    from sempa_mlx.data.readers import has_suffix, read_lines
    from sempa_mlx.data.sources import training_source

    if path is None:
        try:
            source = training_source("nli").path
        except DataError as error:
            fix = f"name a file of texts, one a line: {option} FILE"
            problems = [replace(problem, fix=fix) for problem in error.problems]
            raise DataError(problems, state="nothing was fitted") from error
        records = read_preferences(source, limit=wanted, skip_faulty=True).records
        yield from (record.anchor for record in records)
    elif has_suffix(path, RECORD_FILES):
        yield from (record.anchor for record in read_preferences(path).records)
    else:
        yield from (line.text for line in read_lines(path))


def reads_final_states(encoder: "Encoder") -> bool:
    """Tell whether an encoder takes states as the model hands them out."""
    is_changed = encoder.method.intervention.takes or encoder.settings.post is not None
    return encoder.reads_last_layer and not is_changed


def parameters_of(encoder: "Encoder") -> str:
    """Say method, layer and parameters of an encoder in a few words, and which are defaults."""
    found, depth = encoder.parameters, encoder.depth
    layer = found.index(depth)
    facts = ["final layer" if layer == depth else f"layer {layer} of {depth}"]
    if found.block is not None:
        facts.append(f"block {found.block}")
    if found.strength is not None:
        facts.append(f"strength {found.strength:g}")
    if encoder.method.intervention.takes and encoder.settings.block is None:
        facts.append("by depth, not tuned")
    if encoder.settings.post is not None:
        facts.append(f"{encoder.settings.post.kind} {encoder.settings.post.digest}")
    return f"method {encoder.method.name}, {', '.join(facts)}"


def warn_cut(console: Console, num_cut: int, max_tokens: int) -> None:
    """Warn of texts that were cut, if any."""
    if num_cut:
        texts = "1 text was" if num_cut == 1 else f"{num_cut} texts were"
        console.warn(f"{texts} longer than {max_tokens} tokens and cut at the end")
