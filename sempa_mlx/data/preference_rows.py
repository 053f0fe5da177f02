"""One preference row in, a draft of its record out; every fault of the row is noted.

| format | keys of a row | prompt |
| --- | --- | --- |
| triplets | anchor, entailment, contradiction, neutral (optional) | paraphrase request |
| simcse | sent0, sent1, hard_neg, neutral (optional) | paraphrase request |
| trl | prompt (optional), chosen, rejected as texts or messages; system (optional) | as given |
| ms-swift | messages that end in an assistant turn, rejected_response | as given |
"""

from typing import NamedTuple

from sempa_mlx.data.readers import text_fault
from sempa_mlx.data.records import Message
from sempa_mlx.data.templates import paraphrase_prompt
from sempa_mlx.errors import Problem

NO_NEUTRAL = "no neutral sentence"

REQUIRED: dict[str, tuple[str, ...]] = {
    "triplets": ("anchor", "entailment", "contradiction"),
    "simcse": ("sent0", "sent1", "hard_neg"),
    "ms-swift": ("messages", "rejected_response"),
    "trl": ("chosen", "rejected"),
}
SENTENCE_FORMS = ("triplets", "simcse")  # the others hold prompts and answers
OPTIONAL: dict[str, tuple[str, ...]] = {
    "triplets": ("neutral",),
    "simcse": ("neutral",),
    "ms-swift": (),
    "trl": ("prompt", "system"),
}
_NOT_TEXT = ("tools", "images", "videos", "audios", "rejected_images", "rejected_messages")
_ROLES = ("system", "user", "assistant", "tool")


class Plan(NamedTuple):
    """How rows become records: paraphrase template, system text, number of candidates."""

    template: str
    system: str | None
    candidates: int


class Draft(NamedTuple):
    """A record without its line, the text that counts as its anchor, and why to drop it, if so."""

    prompt: str | tuple[Message, ...]
    anchor: str
    candidates: tuple[str, ...]
    drop: str = ""


_NO_DRAFT = Draft((), "", ())


class Fields:
    """The fields of one row under examination; gathers what is wrong with them."""

    def __init__(self, place: str, values: dict[str, object]) -> None:
        self.values = values
        self.faults: list[Problem] = []
        self._place = place

    def fault(self, what: str, fix: str = "") -> None:
        """Note a fault of this row."""
        self.faults.append(Problem(what, self._place, fix=fix))

    def text(self, key: str) -> str:
        """Return the text under `key`, or "" after noting what is wrong with it."""
        if key not in self.values:
            self.fault(f"the field `{key}` is missing")
            return ""
        value = self.values[key]
        wrong = text_fault(value)
        if wrong or not isinstance(value, str):
            self.fault(f"the field `{key}` {wrong}")
            return ""
        return value

    def messages(self, key: str) -> tuple[Message, ...]:
        """Return the messages under `key`, or () after noting what is wrong with them."""
        if key not in self.values:
            self.fault(f"the field `{key}` is missing")
            return ()
        value = self.values[key]
        if not isinstance(value, list) or not value:
            self.fault(f"the field `{key}` is not a list of messages")
            return ()
        turns = [self._message(f"{key}[{index}]", turn) for index, turn in enumerate(value)]
        return tuple(turn for turn in turns if turn)

    def _message(self, name: str, turn: object) -> Message | None:
        if not isinstance(turn, dict):
            self.fault(f"`{name}` is not a message", 'write {"role": ..., "content": ...}')
            return None
        role, content = turn.get("role"), turn.get("content")
        if role not in _ROLES:
            self.fault(f"`{name}.role` is none of {', '.join(_ROLES)}")
        wrong = text_fault(content)
        if wrong:
            self.fault(f"`{name}.content` {wrong}")
        return Message(str(role), str(content))


def _triplet(fields: Fields, keys: tuple[str, ...], plan: Plan) -> Draft:
    anchor, good, bad = (fields.text(key) for key in keys)
    ranked = [good.strip(), bad.strip()]
    drop = ""
    if plan.candidates > len(ranked):
        neutral = fields.values.get("neutral")
        # A CSV has no null, so an empty cell must be able to say "none" as well.
        if neutral is None or (isinstance(neutral, str) and not neutral.strip()):
            drop = NO_NEUTRAL
        else:
            ranked.insert(1, fields.text("neutral").strip())
    user = Message("user", paraphrase_prompt(plan.template, anchor))
    system = () if plan.system is None else (Message("system", plan.system),)
    return Draft((*system, user), anchor, tuple(ranked), drop)


def _system(fields: Fields) -> tuple[Message, ...]:
    """Return the row's own `system` text as a turn; none if it is not given, or blank."""
    given = fields.values.get("system")
    if given is None or (isinstance(given, str) and not given.strip()):
        return ()
    return (Message("system", fields.text("system")),)


def _with_system(fields: Fields, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the row's own `system` text before the turns; note it if theirs is another."""
    system = _system(fields)
    theirs = tuple(turn for turn in prompt if turn.role == "system")
    if system and theirs and theirs != system:
        fields.fault("`system` is not what the system turn says", "keep one of them")
    return prompt if theirs else system + prompt


def _chat(fields: Fields, prompt: tuple[Message, ...], candidates: tuple[str, str]) -> Draft:
    if not prompt:
        fields.fault("there is no prompt", "put the turns before the answer into the row")
    elif prompt[-1].role == "assistant":
        fields.fault("the prompt ends in an assistant turn", "end it with a user turn")
    return Draft(prompt, prompt[-1].content if prompt else "", candidates)


def _conversations(fields: Fields) -> Draft:
    """Read chosen and rejected as messages; what both begin with belongs to the prompt.

    As in TRL, a `prompt` that is plain text beside them only repeats the first turn.
    """
    lead = fields.messages("prompt") if isinstance(fields.values.get("prompt"), list) else ()
    sides = [fields.messages(key) for key in REQUIRED["trl"]]
    if fields.faults:
        return _NO_DRAFT
    chosen, rejected = (side[len(lead) :] if side[: len(lead)] == lead else side for side in sides)
    for key, side in zip(REQUIRED["trl"], (chosen, rejected), strict=True):
        if not side or side[-1].role != "assistant":
            fields.fault(f"the field `{key}` does not end in an assistant turn")
            return _NO_DRAFT
    if chosen[:-1] != rejected[:-1]:
        fields.fault("chosen and rejected differ before their last turn", "compare one answer")
    return _chat(fields, lead + chosen[:-1], (chosen[-1].content, rejected[-1].content))


def _trl(fields: Fields) -> Draft:
    if any(isinstance(fields.values.get(key), list) for key in REQUIRED["trl"]):
        return _conversations(fields)
    candidates = (fields.text("chosen"), fields.text("rejected"))
    if isinstance(fields.values.get("prompt"), list):
        return _chat(fields, fields.messages("prompt"), candidates)
    prompt = fields.text("prompt")
    if not _system(fields):
        return Draft(prompt, prompt, candidates)
    # mlx-lm-lora's rows: a system text turns the plain prompt into a conversation.
    return _chat(fields, (Message("user", prompt),), candidates)


def _swift(fields: Fields) -> Draft:
    turns, rejected = fields.messages("messages"), fields.text("rejected_response")
    if not fields.faults and turns[-1].role != "assistant":
        fields.fault("`messages` does not end in an assistant turn", "end it with the chosen text")
    if fields.faults:
        return _NO_DRAFT
    return _chat(fields, turns[:-1], (turns[-1].content, rejected))


def _form(fields: Fields, form: str) -> str:
    """Return the format that a row's keys name, or come nearest to; note it if that is unclear."""
    keys = fields.values.keys()
    fits = [each for each, required in REQUIRED.items() if keys >= set(required)]
    if len(fits) > 1:
        fields.fault(f"the keys fit {' and '.join(fits)} alike", "keep one set of keys")
    elif form and fits not in ([], [form]):
        fields.fault(f"a {fits[0]} row in a {form} file", "give each format its own file")
    if fits or form:
        return form or fits[0]
    shared = {each: len(keys & {*REQUIRED[each], *OPTIONAL[each]}) for each in REQUIRED}
    nearest = max(shared, key=lambda each: shared[each])
    if not shared[nearest]:
        known = "; ".join(", ".join(required) for required in REQUIRED.values())
        fields.fault("the keys fit no known format", f"known sets of keys: {known}")
    return nearest


def draft_row(fields: Fields, form: str, plan: Plan) -> tuple[str, Draft]:
    """Return the format of a row and its draft, which is void if `fields` now has faults.

    Args:
        fields: the row; its faults are noted in it.
        form: the format of the rows before, or "": a file holds one format only.
        plan: how to make the record. Texts of triplets are stripped but for the anchor; chat rows
            stay as they are, and neither template nor system text is added to them.
    """
    form = _form(fields, form)
    if fields.faults:
        return form, _NO_DRAFT
    for key in _NOT_TEXT:
        if fields.values.get(key):
            fields.fault(f"the field `{key}` is not supported", "only rows of plain text are")
    if form in ("triplets", "simcse"):
        return form, _triplet(fields, REQUIRED[form], plan)
    draft = _trl(fields) if form == "trl" else _swift(fields)
    if form == "trl" and not isinstance(draft.prompt, str) and not fields.faults:
        draft = draft._replace(prompt=_with_system(fields, draft.prompt))
    return form, draft._replace(drop=NO_NEUTRAL if plan.candidates > 2 else "")
