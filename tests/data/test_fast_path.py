"""The fast path gives exactly the tokens and labels of the usual way; where it would not, it is not used."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data.encoding import ascii_ids, fast_path
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.fast_path import FastPath
from fastchat.data.encoding.raw_tokenizer import RawTokenizer
from fastchat.data.encoding.supervision import TRAIN_ON
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.sources import Source
from fastchat.data.tokens.prepare import TokenSettings, get_or_create_tokens
from fastchat.data.tokens.store import make_shard
from fastchat.errors import SettingsError
from tests.builders import TOKENIZER_KINDS, chat_rows, write_rows
from tests.tiers import SHARED, TEMPLATES, pairs, thorough

LOST = "st"  # a word that two merged letters are
BYTE_LEVEL = ("byte_bos", "byte_nobos")
PLACES = [
    *pairs(TOKENIZER_KINDS, ("chatml", "llama-3", "vicuna_v1.1", "gemma", "llama-2", "zephyr")),
    *(
        thorough(tokenizer, template, in_default=False)
        for tokenizer in (*TOKENIZER_KINDS, *SHARED)
        for template in TEMPLATES
    ),
]
FRAGMENTS = (
    "the answer is", " and", "Hello", " ", "  ", "\n", "\n\n", "\r\n", "\t", "12345678", " 3.14", "don't", "I'LL",
    "def f(x):\n    return x[1:]", "...", "===", "naïve", "e\u0301", "汉字", "🙂", "▁", "\u00a0", "ſ", "\0", "USER:",
)  # fmt: skip


def dialogues_of(chat_encoder: ChatEncoder, num: int, seed: int = 0) -> list[tuple[int, Dialogue]]:
    """Random ones with odd texts, strings of control tokens among them."""
    controls = [*chat_encoder.encoder.added, *(c.content for c in chat_encoder.controls.values() if c)]
    dice = random.Random(seed)

    def said() -> str:
        words = dice.choices((*FRAGMENTS, *dice.sample(controls, min(3, len(controls)))), k=dice.randint(1, 12))
        return "".join(words) if dice.random() < 0.9 else "".join(words) * 40

    def turns(rounds: int) -> Iterator[Turn]:
        for _ in range(rounds):
            yield Turn("user", said())
            yield Turn("assistant", said(), train=dice.random() < 0.8)

    systems = [dice.choice((None, "", said())) for _ in range(num)]
    return [(i, Dialogue(tuple(turns(dice.randint(1, 4))), system)) for i, system in enumerate(systems)]


def made(chat_encoder: ChatEncoder, dialogues: list[tuple[int, Dialogue]]) -> list[Any]:
    """Everything that is made of dialogues, at several limits: arrays, counts, and what is encoded one by one."""
    found: list[Any] = []
    for limit, overlong in ((1 << 20, "truncate"), (60, "truncate"), (60, "drop")):
        shard = make_shard(dialogues, chat_encoder, max_length=limit, overlong=overlong)
        found.append(({name: values.tolist() for name, values in shard.arrays.items()}, shard.counts, shard.gains))
    for _, dialogue in dialogues:
        rendered = chat_encoder.template.render(dialogue)
        found += [chat_encoder.encode(rendered), chat_encoder.count(rendered)]
    return found


def prepared(encoder: TextEncoder) -> FastPath:
    fast = FastPath(encoder)
    fast.prepare(["some data"])
    return fast


@pytest.fixture(scope="session")
def fast_of(encoder_of: Callable[[str], TextEncoder]) -> Callable[[str], FastPath]:
    """The proven fast path of each kind of tokenizer, made once."""
    found: dict[str, FastPath] = {}
    return lambda name: found.get(name) or found.setdefault(name, prepared(encoder_of(name)))


def changed(encoder: TextEncoder, change: Callable[[dict[str, Any]], Any]) -> TextEncoder:
    """The same tokenizer with another `tokenizer.json`."""
    spec = copy.deepcopy(encoder.spec)
    change(spec)
    raw = encoder.raw
    return TextEncoder(RawTokenizer(json.dumps(spec), spec, raw.bos_token, raw.eos_token, name="changed"))


def assert_same_tokens(encoder: TextEncoder, fast: FastPath, texts: list[str]) -> None:
    for position in ("first", "after", "inside"):
        usual = encoder.plain_tokens(texts, position)
        assert [tokens.ids for tokens in fast.tokens(texts, position)] == [ids for ids, _ in usual]


def random_texts(num: int = 100) -> list[str]:
    dice = random.Random(1)
    return ["".join(dice.choices(FRAGMENTS, k=dice.randint(1, 30))) for _ in range(num)]


# --- the same tokens and labels


@pytest.mark.parametrize(("tokenizer", "template"), PLACES)
def test_everything_made_of_dialogues_is_the_same(
    encoder_of: Callable[[str], TextEncoder],
    fast_of: Callable[[str], FastPath],
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: str,
    template: str,
) -> None:
    encoder, fast = encoder_of(tokenizer), fast_of(tokenizer)
    assert (fast.why_not, fast.lengths is not None) == ("", True)
    assert fast._ascii is not None or tokenizer == "models/stories260K"
    for train_on in TRAIN_ON:
        monkeypatch.setattr(encoder, "fast", FastPath(encoder))
        chat_encoder = encoder.bind(get_template(template), train_on)
        dialogues = dialogues_of(chat_encoder, 6, seed=TRAIN_ON.index(train_on))
        usual = made(chat_encoder, dialogues)
        monkeypatch.setattr(encoder, "fast", fast)
        assert made(chat_encoder, dialogues) == usual


@pytest.mark.parametrize("tokenizer", TOKENIZER_KINDS)
def test_most_texts_take_it(
    encoder_of: Callable[[str], TextEncoder], fast_of: Callable[[str], FastPath], tokenizer: str
) -> None:
    """And those that do not are the ones that the tokenizer changes, or whose tokens are not their text."""
    fast, texts = fast_of(tokenizer), ["some words, 12 of them", "naïve 汉字", "e\u0301", "a ▁ b"]
    ways = [tokens.offsets is None for tokens in fast.tokens(texts, "after")]
    assert ways == [True, True, tokenizer != "byte_nobos", tokenizer in BYTE_LEVEL]
    assert_same_tokens(encoder_of(tokenizer), fast, [*random_texts(), "word " * 20_000, " " * 70_000 + "x"])


def _replace_pre_tokenizer(steps: list[dict[str, Any]]) -> Callable[[dict[str, Any]], Any]:
    return lambda spec: spec.update(pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


def _split(regex: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False}


def _level(**more: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False, **more}


WORDS = r"[!-/:-~]?[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN = {
    "GPT-2": [_level(use_regex=True)],
    "Falcon": [{"type": "Digits", "individual_digits": True}, _level(use_regex=True)],
    "StarCoder": [{"type": "Digits", "individual_digits": False}, _level(use_regex=True)],
    "DeepSeek-V3": [_split(r"\p{N}{1,3}"), _split("[一-龥\u3040-ゟ゠-ヿ]+"), _split(WORDS), _level()],
    "o200k": [
        _split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{Lo}]+(?i:'s|'t|'ll)?|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        _level(),
    ],
    "one word": [_level()],
    "nothing": [_split(r"\p{L}*|(?=7)"), _level()],
    "no string": [_split("") | {"pattern": {"String": ""}}, _level()],
    "gaps": [_split(r"\p{L}+|[0-9](?=[a-z])"), _level()],
}  # fmt: skip


@pytest.mark.parametrize("name", [thorough(n, in_default=n in ("GPT-2", "DeepSeek-V3", "nothing")) for n in KNOWN])
def test_published_ways_of_splitting_words(encoder_of: Callable[[str], TextEncoder], name: str) -> None:
    encoder = changed(encoder_of("byte_nobos"), _replace_pre_tokenizer(KNOWN[name]))
    fast = prepared(encoder)
    assert (fast.why_not, fast.lengths is not None, fast._ascii is not None) == ("", True, True)
    assert_same_tokens(encoder, fast, random_texts())


def test_merges_in_another_order_than_the_ids(encoder_of: Callable[[str], TextEncoder]) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["model"]["merges"].sort(key=lambda pair: "".join(pair) == "he")  # this one last

    encoder = changed(encoder_of("byte_nobos"), change)
    fast = prepared(encoder)
    assert fast.why_not == "" and fast._ascii is not None
    assert encoder.plain_ids(["the"], "after") != encoder_of("byte_nobos").plain_ids(["the"], "after")
    assert_same_tokens(encoder, fast, random_texts())


def test_spaces_before_the_first_word_and_added_white_space(encoder_of: Callable[[str], TextEncoder]) -> None:
    def legacy(spec: dict[str, Any]) -> None:
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
        spec["pre_tokenizer"] = None

    def white(spec: dict[str, Any]) -> None:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        first = max(token["id"] for token in spec["added_tokens"]) + 1
        spec["added_tokens"] += [{"id": first + i, "content": c, **flags} for i, c in enumerate(("\n\n", "  ", "    "))]

    for kind, change in (("metaspace_bos", legacy), ("gemma", white), ("byte_nobos", white)):
        encoder = changed(encoder_of(kind), change)
        fast = prepared(encoder)
        assert fast.lengths is not None
        assert fast.why_not == ("" if kind == "metaspace_bos" else "it has added tokens of white space")
        assert_same_tokens(encoder, fast, random_texts())


# --- tokenizers that are unlike what the fast path does


def _lose_merge(spec: dict[str, Any]) -> None:
    """A word of the vocabulary that whole words can be, but merges cannot make."""
    model = spec["model"]
    model["ignore_merges"] = True
    model["merges"].remove(next(pair for pair in model["merges"] if "".join(pair) == LOST))


REFUSED = {
    "listed twice": (lambda spec: spec["model"]["merges"].append(spec["model"]["merges"][50]), "are apart in its list"),
    "a merge less": (_lose_merge, "a word of its vocabulary is two tokens when it is merged"),
    "lower case": (lambda spec: spec.update(normalizer={"type": "Lowercase"}), "its normalizer has the step Lowercase"),
    "prefix": (_replace_pre_tokenizer([_level(add_prefix_space=True)]), "its pre-tokenizer has the step ByteLevel"),
    "words removed": (_replace_pre_tokenizer([_split(r"\s", "Removed"), _level()]), "has the step Split"),
    "words joined": (_replace_pre_tokenizer([_split(r"\s", "MergedWithNext"), _level()]), "in a way that tiktoken"),
    "two dialects": (_replace_pre_tokenizer([_split(r"\p{N}{1,3}+|\s+|\S"), _level()]), "something else to tiktoken"),
    "a place": (_replace_pre_tokenizer([_split(r"^a|\s+|\S"), _level()]), "something else to tiktoken"),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [thorough(n, in_default=n in ("listed twice", "a merge less", "lower case")) for n in REFUSED]
)
def test_another_tokenizer_is_refused(encoder_of: Callable[[str], TextEncoder], name: str) -> None:
    """And what is encoded then is still right."""
    change, why = REFUSED[name]
    encoder = changed(encoder_of("byte_nobos"), change)
    fast = prepared(encoder)
    assert why in fast.why_not and fast._ascii is None
    assert_same_tokens(encoder, fast, random_texts(40))


def test_a_word_that_merges_cannot_make_is_left_to_them(encoder_of: Callable[[str], TextEncoder]) -> None:
    """Without `ignore_merges` that word never becomes one token, though tiktoken would make it one."""

    def change(spec: dict[str, Any]) -> None:
        _lose_merge(spec)
        spec["model"]["ignore_merges"] = False

    encoder = changed(encoder_of("byte_nobos"), change)
    fast = prepared(encoder)
    assert fast._ascii is not None and len(encoder.plain_ids([LOST], "first")[0]) == 2
    assert_same_tokens(encoder, fast, [LOST, f"{LOST} {LOST}", *random_texts(40)])


def test_no_other_id_gets_through_the_proof(
    encoder_of: Callable[[str], TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, real = encoder_of("byte_bos"), ascii_ids.ascii_ids

    def wrong(*given: Any) -> Any:
        right, why = real(*given)
        assert right is not None
        return right._replace(ids=lambda text: right.ids(text)[::-1] if "7" * 64 in text else right.ids(text)), why

    monkeypatch.setattr(fast_path, "ascii_ids", wrong)
    fast = prepared(encoder)
    assert fast.lengths is None and fast.why_not.startswith("the ids of 'x777")
    monkeypatch.setattr(fast_path, "ascii_ids", real)
    encoder = encoder_of("metaspace_bos")
    lengths = fast_path._lengths(encoder)[0]
    assert lengths is not None
    ids = encoder.plain_ids(["the words"], "first")[0]
    lengths[[ids[0], ids[-1]]] += np.array([1, -1], np.int32)
    monkeypatch.setattr(fast_path, "_lengths", lambda _: (lengths, ""))
    fast = FastPath(encoder)
    fast.prepare(["the words"])
    assert fast.lengths is None and "are at other places" in fast.why_not


def test_without_tiktoken_it_is_said_how_to_get_it(
    encoder_of: Callable[[str], TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of("byte_bos")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    fast = prepared(encoder)
    assert fast.why_not == "tiktoken is not installed (pip install tiktoken)" and fast.lengths is not None
    assert_same_tokens(encoder, fast, random_texts(40))


def test_a_library_that_gives_up_on_a_text_is_not_asked_again(
    encoder_of: Callable[[str], TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in Rust is no `Exception`, so it would end the run; the usual way may encode the text."""
    encoder = changed(encoder_of("byte_nobos"), lambda _: None)
    fast, panic = prepared(encoder), type("PanicException", (BaseException,), {})
    encode = fast._ascii

    def gives_up(text: str) -> list[int]:
        assert encode is not None
        if "7" in text:
            raise panic("Regex search error")
        return encode.ids(text)

    given_up = ascii_ids.AsciiIds(gives_up, cuts=True)
    monkeypatch.setattr(fast, "_ascii", given_up)
    assert_same_tokens(encoder, fast, random_texts(40))
    monkeypatch.setattr(fast_path, "ascii_ids", lambda *_: (given_up, ""))
    monkeypatch.setattr(encoder, "plain_tokens", lambda *_: gives_up("7"))
    fast = prepared(encoder)
    assert fast.lengths is None and "cannot encode difficult texts with it (Regex search error)" in fast.why_not


def test_texts_that_one_of_several_normalizers_changes(
    encoder_of: Callable[[str], TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text becomes longer and another one shorter, so that the lengths of both together add up."""
    forms = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}
    encoder = changed(encoder_of("byte_nobos"), lambda spec: spec.update(normalizer=forms))
    chat_encoder = encoder.bind(get_template("vicuna_v1.1"))
    rendered = chat_encoder.template.render(Dialogue((Turn("user", "\u00bd"), Turn("assistant", "\uff21\u00aa")), ""))
    usual = chat_encoder.encode(rendered)
    monkeypatch.setattr(encoder, "fast", prepared(encoder))
    assert encoder.fast.lengths is not None and chat_encoder.encode(rendered) == usual


def test_tokens_with_the_same_id_are_refused(encoder_of: Callable[[str], TextEncoder]) -> None:
    """A `tokenizer.json` that is written has only one of them."""
    model = copy.deepcopy(encoder_of("byte_nobos").spec)
    model["model"]["vocab"]["zqzq"] = model["model"]["vocab"]["e"]
    parsed = Tokenizer.from_str(json.dumps(model))
    text = parsed.to_str()
    with pytest.raises(SettingsError, match="gives the id [0-9]+ to 2 tokens \\('e', 'zqzq'\\)"):
        TextEncoder(RawTokenizer(text, json.loads(text), None, None, name="twice", parsed=parsed))


# --- when it is used


def test_it_is_prepared_where_there_is_much_to_encode_and_a_refusal_is_said_once(
    encoder_of: Callable[[str], TextEncoder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_rows(tmp_path / "a.jsonl", chat_rows(150))
    (path,) = map(str, tmp_path.iterdir())
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "cache"))
    settings = TokenSettings(1024, "truncate", "stop", workers=1, overwrite=True)
    files: list[Any] = []
    size = Path(path).stat().st_size  # known before the first text, of which there is less: the first texts prepare it
    for worth, change, said in (
        (1 << 30, REFUSED["prefix"][0], 0),
        (1, REFUSED["prefix"][0], 1),
        (1 << 30, lambda _: None, 0),
        (size, lambda _: None, 0),
    ):
        monkeypatch.setattr(fast_path, "WORTH", worth)
        encoder = changed(encoder_of("byte_nobos"), change)
        found = get_or_create_tokens("train", [Source(path, (path,))], encoder.bind(get_template("chatml")), settings)
        files.append(found.entry.about["files"])
        line = "without the fast path, because its pre-tokenizer has the step ByteLevel; the tokens are the same"
        assert capsys.readouterr().err.count(line) == said
        assert (encoder.fast.lengths is not None) == (worth == size)
    assert files[0] == files[1] and files[2] == files[3]
