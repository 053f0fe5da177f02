"""The body of `POST /v1/embeddings`, checked."""

from dataclasses import dataclass

from sempa_mlx.serve.fields import Fields, is_list_of, is_text, is_whole

Input = str | tuple[int, ...]
INPUT_FORMS = "must be a text, texts in a list, or token ids in a list or in lists in a list"


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """What to embed: texts, or token ids of the model's own tokenizer, which stand for their text.

    `dimensions` cuts the vectors (None: whole); `as_base64` asks for little-endian float32.
    """

    model: str
    inputs: tuple[Input, ...]
    dimensions: int | None
    as_base64: bool


def parse_embedding_request(document: object, *, max_inputs: int, dim: int) -> EmbeddingRequest:
    """Check a body.

    Args:
        document: the parsed JSON.
        max_inputs: how many texts a request may have.
        dim: length of a whole vector.

    Raises:
        RequestError: 400 with every fault.
    """
    fields = Fields(document)
    model = fields.text("model")
    inputs = _inputs(fields, max_inputs)
    dimensions = fields.whole("dimensions", 1, dim)
    encoding = fields.value("encoding_format")
    if encoding not in (None, "float", "base64"):
        fields.fault("encoding_format", "must be `float` or `base64`")
    fields.ignore("user")
    fields.finish()
    return EmbeddingRequest(model, inputs, dimensions, encoding == "base64")


def _inputs(fields: Fields, max_inputs: int) -> tuple[Input, ...]:
    value = fields.value("input")
    if is_text(value):
        return (value,)
    if isinstance(value, list) and value:
        if is_list_of(is_whole, value):
            return (tuple(value),)
        if len(value) > max_inputs:
            what = f"may have at most {max_inputs} texts, not {len(value)}: send several requests"
            fields.fault("input", what)
            return ()
        if is_list_of(is_text, value):
            return tuple(value)
        if all(each and is_list_of(is_whole, each) for each in value):
            return tuple(map(tuple, value))
    fields.fault("input", INPUT_FORMS)
    return ()
