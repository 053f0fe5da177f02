"""The vector of one text by every method, computed the slow way and apart from the package.

One text at a time, whole rows, an own loop over the model's blocks with masks by hand, numpy in
float64 for what comes after. Contrastive Prompting uses that `o_proj` is linear: what it makes of a
difference of heads is the difference of what it makes of them.
"""

import mlx.core as mx
import numpy as np

from sempa_mlx.data.templates import clean_sentence
from tests.tiny import WINDOW

QUOTED = '"{}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, while "
    "descriptive terms provide additional but less central details. With this in mind , this "
    "sentence : "
)
FRAMES = {
    "prompteol": "This sentence : ",
    "prompteol-icl": 'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
    "This sentence : ",
    "pretcot": "After thinking step by step , this sentence : ",
    "ke": KE,
}
GEMMAS = ("gemma2", "gemma3_text")


def ids(loaded, text):
    return loaded.tokenizer._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]


def masks(model, length):
    """Who may look at whom in each block, (length, length) bool; None for a convolution."""
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    causal = key <= query
    kind = model.args.model_type
    for index, _ in enumerate(model.model.layers):
        if kind == "gemma3_text" and (index + 1) % 2:
            yield mx.array(causal & (query - key < WINDOW))
        elif kind == "lfm2" and model.args.layer_types[index] == "conv":
            yield None
        else:
            yield mx.array(causal)


def embedded(model, row):
    states = model.model.embed_tokens(mx.array([row]))
    scale = {"gemma2": model.args.hidden_size**0.5}.get(model.args.model_type, 1.0)
    if model.args.model_type == "gemma3_text":  # its scale is rounded
        scale = mx.array(model.args.hidden_size**0.5, mx.bfloat16).astype(mx.float32)
    return states * scale


def final_norm(model, states):
    name = "embedding_norm" if model.args.model_type == "lfm2" else "norm"
    return getattr(model.model, name)(states)


def walk(model, row, before=lambda index, states: states, run=None):
    """All hidden states as Hugging Face counts them, (depth + 1) arrays (length, dim)."""
    states, found = embedded(model, row), []
    for index, (block, mask) in enumerate(
        zip(model.model.layers, masks(model, len(row)), strict=True)
    ):
        found.append(states)
        states = before(index, states)
        states = run(index, block, states, mask) if run else block(states, mask, None)
    found.append(final_norm(model, states))
    return [np.array(each[0]).astype(np.float64) for each in found]


def attended(block, states, mask):
    """What attention adds, before any norm after it."""
    return block.self_attn(block.input_layernorm(states), mask, None)


def completed(model, block, states, added):
    """The rest of a block, given what attention adds."""
    if model.args.model_type in GEMMAS:
        states = states + block.post_attention_layernorm(added)
        wide = block.mlp(block.pre_feedforward_layernorm(states))
        return states + block.post_feedforward_layernorm(wide)
    states = states + added
    return states + block.mlp(block.post_attention_layernorm(states))


def contrasted(model, row, auxiliary, target, strength):
    taken = {}

    def look(index, block, states, mask):
        added = attended(block, states, mask)
        taken[index] = added[:, -1:]
        return completed(model, block, states, added)

    def change(index, block, states, mask):
        added = attended(block, states, mask)
        if index == target:
            last = strength * (added[:, -1:] - taken[index])
            added = mx.concatenate([added[:, :-1], last], axis=1)
        return completed(model, block, states, added)

    walk(model, auxiliary, run=look)
    return walk(model, row, run=change)


def prepended(model, row, place, stop):
    noise = mx.array(np.random.default_rng(0).standard_normal(model.args.hidden_size))

    def before(index, states):
        if index >= stop:
            return states
        new = noise.astype(mx.float32)[None, None] if index == 0 else states[:, -1:]
        return mx.concatenate([states[:, :place], new, states[:, place + 1 :]], axis=1)

    return walk(model, row, before)


def quoted_row(encoder, frame, text):
    return ids(encoder.loaded, frame + QUOTED.format(clean_sentence(text)))


def states_and_weights(encoder, text):
    """Hidden states of each prompt, and the weight of each of its tokens."""
    name, loaded, parameters = encoder.settings.method, encoder.loaded, encoder.parameters
    model = loaded.model
    if name == "metaeol":
        for template in encoder.method.templates:
            row = ids(loaded, template.prefix + clean_sentence(text) + template.suffix)
            yield walk(model, row), np.eye(len(row))[-1]
    elif name == "echo":
        sentence = ids(loaded, text)
        row = ids(loaded, "Rewrite the sentence: ") + sentence
        row = row + ids(loaded, ", rewritten sentence: ") + sentence
        weights = np.zeros(len(row))
        weights[-max(len(sentence), 1) :] = 1 / max(len(sentence), 1)
        yield walk(model, row), weights
    elif name == "cp":
        row = quoted_row(encoder, "This sentence : ", text)
        auxiliary = quoted_row(encoder, "The irrelevant information of this sentence : ", text)
        states = contrasted(model, row, auxiliary, parameters.block, parameters.strength)
        yield states, np.eye(len(row))[-1]
    elif name == "tp":
        head = ids(loaded, "This sentence : ")
        row = [*head, 3, *quoted_row(encoder, " ", text)]
        yield prepended(model, row, len(head), parameters.block), np.eye(len(row))[-1]
    elif name in FRAMES:
        row = quoted_row(encoder, FRAMES[name], text)
        yield walk(model, row), np.eye(len(row))[-1]
    else:
        row = ids(loaded, text) or [loaded.tokenizer.eos_token_id]
        ranks = np.arange(1, len(row) + 1)
        weights = {
            "last": np.eye(len(row))[-1],
            "mean": np.ones(len(row)) / len(row),
            "weighted-mean": ranks / ranks.sum(),
        }[name]
        yield walk(model, row), weights


def layers_one_by_one(encoder, text):
    """The vectors of a text at every layer, (depth + 1, dim) float64, not of unit length."""
    found = [
        np.stack([weights @ layer for layer in states])
        for states, weights in states_and_weights(encoder, text)
    ]
    return np.mean(found, axis=0)


def one_by_one(encoder, text):
    """The vector of a text as the encoder's settings want it."""
    vector = layers_one_by_one(encoder, text)[encoder.parameters.layer][: encoder.dim]
    return vector / np.linalg.norm(vector) if encoder.settings.normalize else vector
