"""Tokens in, text out, piece by piece: whole characters only, and nothing of a stop text."""

from collections.abc import Sequence

from mlx_lm.tokenizer_utils import TokenizerWrapper

BROKEN = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one answer as it grows; all pieces together are the text before any stop."""

    def __init__(self, tokenizer: TokenizerWrapper, stops: Sequence[str] = ()) -> None:
        """Begin an answer that ends before the first of `stops`."""
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._tokens: list[int] = []
        self._start = self._read = 0  # the text of tokens before `read` has been taken
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token; return the text that is certain now."""
        self._tokens.append(token)
        new = self._new_text()
        # A character may span tokens; what ends in the middle of one waits for its rest. What has
        # no text, such as a control token, is no neighbour that decides about a blank.
        return "" if not new or new.endswith(BROKEN) else self._take(new)

    def finish(self) -> str:
        """Return the text that waited for more; nothing after a stop text."""
        if not self.stopped:
            self._held += self._new_text()
            self._cut_at_stop()
        last, self._held = self._held, ""
        return last

    def _new_text(self) -> str:
        # Decoded after what came before: a token's blank depends on its neighbour.
        before = self._decoded(self._tokens[self._start : self._read])
        return self._decoded(self._tokens[self._start :])[len(before) :]

    def _decoded(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _take(self, text: str) -> str:
        self._start, self._read = self._read, len(self._tokens)
        self._held += text
        self._cut_at_stop()
        if self.stopped:
            return ""
        keep = self._begun_stop()
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        return certain

    def _cut_at_stop(self) -> None:
        places = [self._held.find(stop) for stop in self._stops if stop in self._held]
        if places:
            self._held = self._held[: min(places)]
            self.stopped = True

    def _begun_stop(self) -> int:
        """Return how many characters at the end may be the beginning of a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0
