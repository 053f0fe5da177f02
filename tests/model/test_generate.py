import functools
import itertools

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.model import generate
from sempa_mlx.model.forward import common_prefix
from sempa_mlx.model.generate import Start, continue_all, continue_greedily
from sempa_mlx.model.lora import dialled
from sempa_mlx.model.sampling import draw_from
from tests.tiny import CONFIGS, END, START, put_adapter, tiny_loaded

TEXTS = (
    "A cat sleeps on the warm stone.",
    "A cat sleeps",
    "A cat",
    "A cat sleeps on the warm stone. Two dogs run on the grass while a man is watching them.",
    "A cat runs",
)
TOKENS = 12

loaded_of = functools.cache(tiny_loaded)


def encoded(loaded, texts=TEXTS):
    return [loaded.tokenizer.encode(text) for text in texts]


def naive(loaded, prompt, max_tokens=TOKENS):
    """One whole forward pass a token; stops at the end token."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        best = int(np.argmax(np.array(loaded.model(mx.array([tokens])))[0, -1]))
        if best in loaded.tokenizer.eos_token_ids:
            break
        tokens.append(best)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("batch_rows", [1, 2, 8])
def test_continuations_are_those_of_whole_forward_passes(kind, batch_rows):
    loaded = loaded_of(kind)
    prompts = encoded(loaded)
    done = []
    found = continue_greedily(
        loaded, prompts, max_tokens=TOKENS, batch_rows=batch_rows, on_progress=done.append
    )
    decode = functools.partial(loaded.tokenizer.decode, skip_special_tokens=True)
    assert found == [decode(naive(loaded, prompt)) for prompt in prompts]
    assert len({*found}) > 1
    assert done == [1] * len(prompts)


def test_prompts_with_nothing_in_common_and_a_single_one():
    loaded = loaded_of("llama")
    for texts in (["A cat", "Two dogs run"], ["A cat"], []):
        prompts = encoded(loaded, texts)
        found = continue_greedily(loaded, prompts, max_tokens=5)
        assert found == [loaded.tokenizer.decode(naive(loaded, prompt, 5)) for prompt in prompts]


def test_equal_prompts_are_continued_alike():
    loaded = loaded_of("llama")
    found = continue_greedily(loaded, encoded(loaded, ["A cat"] * 3), max_tokens=5)
    assert len({*found}) == 1
    assert found[0]


def test_a_continuation_ends_before_the_first_stop_text():
    loaded = loaded_of("llama")
    prompts = encoded(loaded)
    whole = continue_greedily(loaded, prompts, max_tokens=TOKENS)
    stops = [whole[0][4:6], whole[1][-1:], "never said"]
    found = continue_greedily(loaded, prompts, max_tokens=TOKENS, stops=stops)
    expected = []
    for text in whole:
        for stop in stops:
            text = text.split(stop)[0]
        expected.append(text)
    assert found == expected
    assert found[0] != whole[0]
    assert found[1] != whole[1]


def saying(loaded, *words):
    """The loaded model with an embedding made so that it says these tokens in a row."""
    ids = [loaded.tokenizer.convert_tokens_to_ids(word) for word in words]
    size = len(loaded.tokenizer.get_vocab())
    following = dict(itertools.pairwise(ids))

    class Fixed:
        def __getattr__(self, name):
            return getattr(loaded.model, name)

        def __contains__(self, name):
            return name in loaded.model

        def __call__(self, tokens, cache=None):
            loaded.model(tokens, cache=cache)  # fills the caches
            nexts = [[following.get(int(t), ids[0]) for t in row] for row in np.array(tokens)]
            return mx.array(np.eye(size, dtype=np.float32)[np.array(nexts)])

    copy = tiny_loaded()
    copy.model = Fixed()
    return copy


def test_control_tokens_stop_when_asked_for_and_are_never_shown():
    loaded = saying(loaded_of("llama"), "a", START, "b", "c")
    prompts = encoded(loaded, ["a", "Xa"])
    assert continue_greedily(loaded, prompts, max_tokens=3) == ["bc"] * 2
    assert continue_greedily(loaded, prompts, max_tokens=3, stops=[START]) == [""] * 2


def test_an_end_token_ends_a_continuation_and_is_not_shown():
    loaded = saying(loaded_of("llama"), "a", "b", END, "c")
    assert continue_greedily(loaded, encoded(loaded, ["a", "Xa"]), max_tokens=5) == ["b"] * 2


def test_the_model_speaks_as_it_is_dialled():
    loaded = tiny_loaded()
    prompts = encoded(loaded)
    base = continue_greedily(loaded, prompts, max_tokens=TOKENS)
    put_adapter(loaded.model, 0.5)
    with dialled(loaded.model, 0.0):
        assert continue_greedily(loaded, prompts, max_tokens=TOKENS) == base
    assert continue_greedily(loaded, prompts, max_tokens=TOKENS) != base


def sampled(loaded, prompts, batch_rows, *, repeat=1):
    """Texts that each row draws by a seed of its own."""
    starts = [
        Start(tuple(prompt), TOKENS, draw_from(100 * row + number, 1.0, 0.9))
        for row, prompt in enumerate(prompts)
        for number in range(repeat)
    ]
    return [each.text for each in continue_all(loaded, starts, batch_rows=batch_rows)]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_what_is_drawn_does_not_depend_on_what_runs_together(kind):
    loaded = loaded_of(kind)
    prompts = encoded(loaded)
    alone = sampled(loaded, prompts, 1, repeat=3)
    assert sampled(loaded, prompts, 4, repeat=3) == alone
    assert sampled(loaded, prompts, 16, repeat=3) == alone
    assert sampled(loaded, prompts[:1], 16, repeat=3) == alone[:3]
    assert len({*alone}) > len(prompts)


def test_a_prompt_that_comes_again_is_run_once(monkeypatch):
    loaded = loaded_of("llama")
    prompts = encoded(loaded, ["A cat sleeps on the warm stone.", "A cat runs on the grass."])
    tokens = []
    real = type(loaded.model.model).__call__

    def counted(self, inputs, *args, **kwargs):
        tokens.append(inputs.size)
        return real(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(loaded.model.model), "__call__", counted)
    monkeypatch.setattr(generate, "batches_exactly", lambda *_: True)  # it runs tokens of its own
    starts = [Start(tuple(prompt), 1) for prompt in prompts for _ in range(6)]
    found = continue_all(loaded, starts, batch_rows=16)
    shared = common_prefix(prompts)
    own = sum(len(prompt) - shared - 1 for prompt in prompts)
    steps = 2  # the last token of a prompt, and what is run ahead of the next
    assert shared > 0
    assert sum(tokens) <= shared + own + steps * len(starts)
    assert [each.text for each in found[::6]] == continue_greedily(loaded, prompts, max_tokens=1)


def test_each_row_has_its_own_length_and_says_whether_it_ended():
    loaded = saying(loaded_of("llama"), "a", "b", END, "c")
    prompts = [tuple(prompt) for prompt in encoded(loaded, ["a", "Xa", "XXa"])]
    starts = [Start(prompt, length) for prompt, length in zip(prompts, (1, 2, 9), strict=True)]
    found = continue_all(loaded, starts)
    assert [(each.text, each.is_ended) for each in found] == [
        ("b", False),
        ("b", True),
        ("b", True),
    ]
