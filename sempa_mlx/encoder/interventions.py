"""What a method does between reading prompts and handing out vectors.

`plain` changes nothing. `prepend` (Token Prepending) and `contrast` (Contrastive Prompting) change
states on their way through the blocks; the model itself is not touched. Blocks are counted from 0.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np

from sempa_mlx.encoder.batch import Batch
from sempa_mlx.model.blocks import Taps
from sempa_mlx.model.hidden_states import MakeTaps, Positions

PLACEHOLDER_SEED = 0
FIRST_PREPENDED = 1  # the placeholder is overwritten from this block on


@dataclass(frozen=True, slots=True)
class Parameters:
    """The numbers that a method has beside its prompts.

    `layer` is the layer that vectors are read from, as an index into Hugging Face's
    `hidden_states`: 0 the embeddings, k the states after k blocks, -1 the final states after the
    norm. `block` and `strength` belong to interventions.
    """

    layer: int
    block: int | None = None
    strength: float | None = None

    def index(self, depth: int) -> int:
        """Return the layer as an index from 0 to `depth`, the number of blocks."""
        return self.layer % (depth + 1)


Found = dict[int, mx.array]  # (texts, dim) float32 by layer, counted from 0
Embed = Callable[[Batch, Sequence[Parameters], Collection[int]], list[Found]]


@dataclass(frozen=True, slots=True)
class Intervention:
    """A way from prompts to vectors, and the parameters it takes.

    `embed` returns the vectors of a batch at some layers, for each of several parameters. `takes`
    names parameters beside the layer. `fault` says what is wrong with parameters for a model of so
    many blocks, or "". `grid` gives pairs of block and strength that tuning tries.
    """

    embed: Embed
    takes: tuple[str, ...] = ()
    fault: Callable[[Parameters, int], str] = lambda _parameters, _depth: ""
    grid: Callable[[int], list[tuple[int | None, float | None]]] = lambda _depth: [(None, None)]


def plain(batch: Batch, variants: Sequence[Parameters], layers: Collection[int]) -> list[Found]:
    """Average the vectors of all prompts; most methods have one."""
    found = [batch.pooled(prompt, layers) for prompt in range(len(batch.rows))]
    if len(found) > 1:
        found = [
            {layer: mx.stack([each[layer] for each in found]).mean(axis=0) for layer in layers}
        ]
    return found * len(variants)


def prepend(batch: Batch, variants: Sequence[Parameters], layers: Collection[int]) -> list[Found]:
    """Let the sentence see what the whole prompt means (Token Prepending, arXiv 2412.11556).

    Before each block from 1 to `block` - 1 the state of a placeholder in front of the sentence is
    overwritten with the last token's. Block 0 sees random numbers there instead of an embedding,
    always the same ones.
    """
    return [batch.pooled(0, layers, _prepending(batch, each)) for each in variants]


def _prepending(batch: Batch, parameters: Parameters) -> MakeTaps:
    place, stop = batch.shapes[0].placeholder, parameters.block
    assert place is not None
    assert stop is not None

    def make_taps(positions: Positions) -> Taps:
        here = place - positions.shared

        def put(states: mx.array, new: mx.array) -> mx.array:
            is_here = (mx.arange(states.shape[1]) == here)[None, :, None]
            return mx.where(is_here, new.astype(states.dtype), states)

        def put_last(states: mx.array) -> mx.array:
            return put(states, positions.last(states))

        def put_random(states: mx.array) -> mx.array:
            return put(states, mx.array(random_state(states.shape[-1])))

        return Taps({0: put_random} | dict.fromkeys(range(FIRST_PREPENDED, stop), put_last))

    return make_taps


@cache
def random_state(dim: int) -> np.ndarray:
    """Return the placeholder's first state, (dim,) float32 from N(0, 1), the same everywhere."""
    return np.random.default_rng(PLACEHOLDER_SEED).standard_normal(dim).astype(np.float32)


def contrast(batch: Batch, variants: Sequence[Parameters], layers: Collection[int]) -> list[Found]:
    """Take away what a sentence says beside the point (Contrastive Prompting, arXiv 2505.12831).

    With A and B what the heads of `block` put out at the last token of the first and the second
    prompt, A is replaced by `strength` (A - B), and the pass over the first prompt goes on. As only
    the last token changes, variants share all others where the model allows that.
    """
    blocks = {each.block for each in variants if each.block is not None}
    auxiliary = last_heads(batch, 1, blocks)
    makers = [_contrasting(each, auxiliary) for each in variants]
    if len(variants) > 1:
        found = batch.reader.read_last(batch.rows[0], layers, makers)
        if found is not None:
            return found
    return [batch.pooled(0, layers, make_taps) for make_taps in makers]


def _contrasting(parameters: Parameters, auxiliary: dict[int, mx.array]) -> MakeTaps:
    block, strength = parameters.block, parameters.strength
    assert block is not None
    assert strength is not None

    def make_taps(positions: Positions) -> Taps:
        def subtract(heads: mx.array) -> mx.array:
            is_last = mx.arange(heads.shape[1])[None, :] == (positions.lengths - 1)[:, None]
            return mx.where(is_last[..., None], strength * (heads - auxiliary[block]), heads)

        return Taps(heads={block: subtract})

    return make_taps


def last_heads(batch: Batch, prompt: int, blocks: Collection[int]) -> dict[int, mx.array]:
    """Return what the heads of some blocks put out at the last token, (texts, 1, width) each."""
    found: dict[int, mx.array] = {}

    def make_taps(positions: Positions) -> Taps:
        def keep(block: int) -> Callable[[mx.array], mx.array]:
            def edit(heads: mx.array) -> mx.array:
                found[block] = positions.last(heads)
                return heads

            return edit

        return Taps(heads={block: keep(block) for block in blocks})

    batch.pooled(prompt, (max(blocks) + 1,), make_taps)
    return found


def _prepend_fault(parameters: Parameters, depth: int) -> str:
    least, stop = FIRST_PREPENDED + 1, parameters.block or 0
    if not least <= stop <= depth:
        return f"the block to leave off before must lie in {least} to {depth}, not {stop}"
    if parameters.index(depth) < least:
        return f"layer {parameters.layer} is read before anything is prepended"
    return ""


def _contrast_fault(parameters: Parameters, depth: int) -> str:
    block = -1 if parameters.block is None else parameters.block
    if not 0 <= block < depth:
        return f"the block must lie in 0 to {depth - 1}, not {block}"
    if parameters.index(depth) <= block:
        return f"layer {parameters.layer} is read before block {block} is run"
    if not np.isfinite(parameters.strength or 0.0):
        return f"the strength must be a finite number, not {parameters.strength}"
    return ""


def _prepend_grid(depth: int) -> list[tuple[int | None, float | None]]:
    """Try leaving off after a twelfth to a third of the depth; the authors do at 9 to 22 %."""
    least = FIRST_PREPENDED + 1
    shares = (1 / 12, 1 / 10, 1 / 8, 1 / 6, 1 / 4, 1 / 3)
    stops = {max(round(depth * share), least) for share in shares}
    return [(stop, None) for stop in sorted(stops) if stop <= depth]


def _contrast_grid(depth: int) -> list[tuple[int | None, float | None]]:
    """Try blocks in the first third; the authors take one at 12 to 19 % and 0.25 or 0.5."""
    blocks = {round(depth * share) for share in (0, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 1 / 3)}
    return [
        (block, strength)
        for block in sorted(blocks)
        if block < depth
        for strength in (0.25, 0.5, 1.0)
    ]


PLAIN = Intervention(plain)
PREPEND = Intervention(prepend, ("block",), _prepend_fault, _prepend_grid)
CONTRAST = Intervention(contrast, ("block", "strength"), _contrast_fault, _contrast_grid)
