"""What the rest of the program knows of data: plain records, no format, no file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """A prompt and its candidates, best first.

    A prompt of messages is rendered with the model's chat template; a plain string is used as it
    stands. `candidates` holds K >= 2 texts in order of preference (chosen, rejected for K = 2).
    `anchor` is the sentence that the prompt is about, or the last turn of a conversation.
    """

    prompt: str | tuple[Message, ...]
    candidates: tuple[str, ...]
    line: int
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class StsPair:
    """Two sentences and the similarity that people gave them."""

    score: float
    sentence1: str
    sentence2: str


@dataclass(frozen=True, slots=True)
class StsSubset:
    """A named run of pairs in an STS set."""

    name: str
    num_pairs: int


@dataclass(frozen=True, slots=True)
class StsTask:
    """A named STS set: all its pairs, in file order, with the protocol they are read under.

    `subsets` are the parts that a set of several has, in the order of its pairs. `origin` is the
    data set and commit that it was read from, where that is known: `owner/name@commit`.
    """

    name: str
    protocol: str
    pairs: tuple[StsPair, ...]
    subsets: tuple[StsSubset, ...] = ()
    origin: str = ""
