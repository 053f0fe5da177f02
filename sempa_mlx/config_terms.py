"""The loss as users write it: `sigmoid`, or a weighted sum such as `sigmoid + 0.5 embedding`."""

import math
import re

from sempa_mlx.config_faults import close_match

# Pairs of chosen and rejected, scored against the reference; TRL's names, and DPOP.
PAIRWISE = (
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "aot",
    "aot_unpaired",
    "discopop",
    "sigmoid_norm",
    "dpop",
)
REFERENCE_FREE = ("simpo", "cpo", "orpo")
RANKED = ("listwise", "softmax")
BESIDE = ("sft", "embedding", "uniformity", "code", "kl")
SENTENCE_TERMS = ("embedding", "uniformity", "code")  # over embeddings of the batch
SCORE_NOTHING = frozenset((*SENTENCE_TERMS, "kl"))  # all others score completions
NO_AIM = {"kl", "uniformity", "code"}  # none of them says which sentences belong together
TERMS = (*PAIRWISE, *REFERENCE_FREE, *RANKED, *BESIDE)

_TERM = re.compile(r"(?:([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*\*?\s*)?([a-z_]+)\Z")


def parse_terms(text: str) -> dict[str, float]:
    """Return the weight of every term, in the order they were written.

    Raises:
        ValueError: the text is no sum of known terms, each once, with weights above 0.
    """
    weights: dict[str, float] = {}
    for part in re.split(r"(?<![0-9.][eE])\+", text):
        match = _TERM.match(part.strip())
        if match is None:
            raise ValueError("a sum of terms such as `sigmoid` or `sigmoid + 0.5 embedding`")
        weight, name = float(match[1] or 1), match[2]
        if name not in TERMS:
            close = close_match(name, TERMS)
            hint = f"did you mean `{close}`? " if close else ""
            raise ValueError(f"a sum of known terms, not `{name}`; {hint}one of {', '.join(TERMS)}")
        if name in weights or not 0 < weight < math.inf:
            raise ValueError(f"a sum with `{name}` once and with a finite weight above 0")
        weights[name] = weight
    if weights.keys() <= NO_AIM:
        named = " and ".join(f"`{name}`" for name in weights)
        raise ValueError(f"a sum with another term than {named}: alone it teaches no preference")
    return weights
