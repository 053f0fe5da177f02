"""Which texts run together in a forward pass, and what of them is run beforehand."""

from collections.abc import Callable, Iterator, Sequence

from sempa_mlx.data.batching import cut_by_length
from sempa_mlx.model.begun import Begun
from sempa_mlx.model.forward import tokens_of_a_pass
from sempa_mlx.model.hidden_states import Row
from sempa_mlx.world import World

WINDOW = 4096  # texts whose beginnings are kept in memory at once


def passes(
    texts: Sequence[tuple[Row, ...]],
    batch_tokens: int,
    world: World,
    begin: Callable[[Sequence[Row]], Begun | None] | None = None,
) -> Iterator[tuple[list[int], Begun | None]]:
    """Yield this process's groups of texts of like length, and what was run of them.

    Args:
        texts: the rows of each text, one a prompt.
        batch_tokens: upper bound of tokens in one pass, padding included.
        world: the processes that share the texts.
        begin: runs what rows begin with, for texts of one prompt (None: nothing is run before).
    """
    size = max(1, len(texts)) if begin is None else WINDOW
    for start in range(0, len(texts), size):
        window = texts[start : start + size]
        begun = None if begin is None else begin([rows[0] for rows in window])
        lengths = [max(map(len, rows)) for rows in window]
        if begun is not None:
            lengths = [len(rest) for rest in begun.rest([rows[0] for rows in window])]
        for group in world.share(cut_by_length(lengths, tokens_of_a_pass(), batch_tokens)):
            part = None if begun is None else begun.of(group)
            yield [start + index for index in group], part
