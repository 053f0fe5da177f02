"""Ways to read one vector off a language model: prompts, a pooling, a layer, an intervention.

A new method is one row of the table. Recipes follow the authors' code; where it gives numbers for
large models only, they are kept as shares of the depth, and `sempa-mlx eval sts --tune` finds
better ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from sempa_mlx.data.templates import (
    ECHO,
    IRRELEVANT,
    KE,
    METAEOL,
    PREPENDED,
    PRETCOT,
    PROMPTEOL,
    PROMPTEOL_ICL,
    RAW,
    EmbeddingTemplate,
)
from sempa_mlx.encoder.batch import Pooling
from sempa_mlx.encoder.interventions import (
    CONTRAST,
    FIRST_PREPENDED,
    PLAIN,
    PREPEND,
    Intervention,
    Parameters,
)
from sempa_mlx.errors import Problem, UsageError


def _final(_depth: int) -> Parameters:
    return Parameters(layer=-1)


def _before_last_block(_depth: int) -> Parameters:
    return Parameters(layer=-2)


def _contrasting(depth: int) -> Parameters:
    """Follow Llama-2-7B in block (4 of 32) and strength, Llama-3-8B in the layer."""
    return Parameters(layer=-2, block=min(round(depth / 8), depth - 2), strength=0.5)


def _prepending(depth: int) -> Parameters:
    """Follow Qwen2-7B and Gemma-2-9B: up to block 6 of 28 and 42, all blocks but the last."""
    least = FIRST_PREPENDED + 1
    return Parameters(layer=max(depth - 1, least), block=max(round(depth / 6), least))


@dataclass(frozen=True, slots=True)
class Method:
    """An embedding method.

    `templates` are its prompts (one for most), `pooling` says how the states of a prompt become one
    vector, `defaults` gives its parameters for a model of so many blocks.
    """

    name: str
    templates: tuple[EmbeddingTemplate, ...]
    pooling: Pooling = "last"
    defaults: Callable[[int], Parameters] = _final
    intervention: Intervention = PLAIN

    @property
    def reads_last(self) -> bool:
        """Whether it reads nothing but the states of last tokens, and changes none."""
        return self.pooling == "last" and self.intervention is PLAIN

    def parameters(
        self,
        depth: int,
        *,
        layer: int | None = None,
        block: int | None = None,
        strength: float | None = None,
    ) -> Parameters:
        """Return the parameters for a model of `depth` blocks: those given, else the defaults.

        Raises:
            UsageError: this method takes no such parameter, or the model has no such block.
        """
        given = {"layer": layer, "block": block, "strength": strength}
        default = self.defaults(depth)
        found = Parameters(
            default.layer if layer is None else layer,
            default.block if block is None else block,
            default.strength if strength is None else strength,
        )
        takes = ("layer", *self.intervention.takes)
        surplus = [name for name, value in given.items() if value is not None and name not in takes]
        faults = [f"method `{self.name}` has no {name}" for name in surplus]
        if not -depth - 1 <= found.layer <= depth:
            faults.append(f"layer must lie in {-depth - 1} to {depth}, not {found.layer}")
        elif not faults and (fault := self.intervention.fault(found, depth)):
            faults.append(f"method `{self.name}`: {fault}")
        if faults:
            raise UsageError(Problem(fault) for fault in faults)
        return found


METHODS = {
    method.name: method
    for method in (
        Method("prompteol", (PROMPTEOL,)),
        Method("mean", (RAW,), "mean"),
        Method("weighted-mean", (RAW,), "weighted-mean"),
        Method("last", (RAW,)),
        Method("echo", (ECHO,), "mean"),
        Method("prompteol-icl", (PROMPTEOL_ICL,)),
        Method("pretcot", (PRETCOT,), defaults=_before_last_block),
        Method("ke", (KE,), defaults=_before_last_block),
        Method("metaeol", METAEOL),
        Method("cp", (PROMPTEOL, IRRELEVANT), defaults=_contrasting, intervention=CONTRAST),
        Method("tp", (PREPENDED,), defaults=_prepending, intervention=PREPEND),
    )
}


def find_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        UsageError: there is none; a close name is offered.
    """
    if name not in METHODS:
        close = get_close_matches(name.lower(), METHODS, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        fix = f"{hint}one of: {', '.join(METHODS)}"
        raise UsageError(Problem(f"no method `{name}`", fix=fix))
    return METHODS[name]
