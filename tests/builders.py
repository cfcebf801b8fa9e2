"""Small real tokenizers and models, created on demand, so that no test needs a download or ../shared.

Four kinds of tokenizer stand for the families people fine-tune. Each is trained on `corpus.txt` (a fraction of a
second) and written as the published ones are written, so that `AutoTokenizer` builds the same class and pipeline:

    metaspace_bos  Llama-2    Metaspace on the first piece only, byte fallback, <s> in front, no pad token
    gemma          Gemma      spaces replaced, byte fallback, <bos> in front; <start_of_turn> in the vocabulary only
    byte_bos       Llama-3    byte-level, <|begin_of_text|> in front
    byte_nobos     Qwen       NFC, byte-level, nothing in front; <think> and <tool_call> added but not special
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

TOKENIZER_KINDS = ("metaspace_bos", "gemma", "byte_bos", "byte_nobos")
CORPUS = Path(__file__).with_name("corpus.txt")
# How the published byte-level tokenizers split words; Qwen splits digits one by one, Llama-3 in groups of up to three.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = [f"<0x{i:02X}>" for i in range(256)]


def make_tokenizer(
    kind: str, directory: str | Path, *, num_merges: int = 400, chat_template: str | None = None
) -> Path:
    """Train a tokenizer of `kind`, write it as a model directory has it, and return the directory.

    >>> make_tokenizer("gemma", tmp_path)   # tokenizer.json and tokenizer_config.json
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    pipeline, config = _MAKERS[kind](num_merges)
    if chat_template is not None:
        config["chat_template"] = chat_template
    text = json.dumps(pipeline, ensure_ascii=False, indent=1)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return directory


def make_model(
    directory: str | Path,
    arch: str = "llama",
    tokenizer_kind: str = "metaspace_bos",
    *,
    hidden: int = 32,
    layers: int = 2,
    tied: bool = False,
    dtype: str = "float32",
    max_positions: int = 512,
    seed: int = 0,
    chat_template: str | None = None,
    **config: Any,
) -> Path:
    """A random model of the real architecture `arch` (a transformers model type) with its tokenizer, as safetensors.

    `hidden` must be a multiple of 8: four heads of `hidden / 4`, two key-value heads. `config` goes to the model's
    configuration as it is. Returns the directory.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    directory = make_tokenizer(tokenizer_kind, directory, chat_template=chat_template)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **values | config))
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return directory


def write_rows(path: str | Path, rows: list[dict[str, Any]]) -> Path:
    """Write `rows` as one .json list or, by the file's name, as .jsonl lines."""
    path = Path(path)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return path


def chat_rows(num: int, rounds: int = 2) -> list[dict[str, Any]]:
    """`num` small harmless ShareGPT dialogues of `rounds` question-answer pairs, all different."""
    rows = []
    for i in range(num):
        turns = []
        for j in range(rounds):
            a, b = i % 17 + j, (3 * i + j) % 13
            turns.append({"from": "human", "value": f"What is {a} plus {b}?"})
            turns.append({"from": "gpt", "value": f"The answer is {a + b}."})
        rows.append({"id": f"sum-{i}", "conversations": turns})
    return rows


def math_rows(num: int) -> list[dict[str, Any]]:
    """`num` multi-round math dialogues in the messages form: a question, code, its output, the answer; all different.

    Of different lengths: some take the output of a first piece of code into a second one.
    """
    rows = []
    for i in range(num):
        a, b = 3 + i % 23, 2 + (7 * i) % 19
        turns = [("user", f"Tickets cost ${a} and {b} people go. How much is it, and with {i} more?")]
        for values in [a * b, a * b + i] if i % 3 else [a * b + i]:
            code = f"price = {a}\ncount = {b}\nprint({values})"
            turns.append(("assistant", f"We compute {values} with code.\n```python\n{code}\n```"))
            turns.append(("user", f"```output\n{values}\n```"))
        turns.append(("assistant", f"Together it is \\boxed{{{a * b + i}}} dollars."))
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return rows


# The four kinds


def _train_bpe(pre_tokenizer: Any, num_merges: int, alphabet: list[str], normalizer: Any = None) -> tuple[list, list]:
    """Train byte-pair merges on the corpus: (tokens in the order of their ids, merges as pairs)."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    # The alphabet is bounded, so that rare scripts go through byte fallback where the kind has it.
    text = CORPUS.read_text(encoding="utf-8")
    alphabet = alphabet or _frequent(text.replace(" ", "▁"), 150)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + num_merges,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [list(pair) for pair in model["merges"]]


def _frequent(text: str, num: int) -> list[str]:
    """The most frequent characters; ties in Unicode order. (The trainer breaks ties randomly: each test session
    would have other ids, and so other losses in every training.)"""
    counts = Counter(text)
    return sorted(counts, key=lambda letter: (-counts[letter], letter))[:num]


def _bpe(tokens: list[str], merges: list, **more: Any) -> dict[str, Any]:
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return model | more | {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}


def _added(names: list[str], first_id: int, special: bool = True) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return [{"id": first_id + i, "content": name} | flags for i, name in enumerate(names)]


def _bos_in_front(token: str, token_id: int) -> dict[str, Any]:
    def bos(k: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": k}}

    def text(name: str, k: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": k}}

    return {
        "type": "TemplateProcessing",
        "single": [bos(0), text("A", 0)],
        "pair": [bos(0), text("A", 0), bos(1), text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _pipeline(model: dict, added: list, normalizer: Any, pre: Any, post: Any, decoder: Any) -> dict[str, Any]:
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer}
    return head | {"pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model}


def _spaces_back(strip: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _metaspace_bos(num_merges: int) -> tuple[dict, dict]:
    from tokenizers import pre_tokenizers

    pre = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokens, merges = _train_bpe(pre, num_merges, [])
    special = ["<unk>", "<s>", "</s>"]
    model = _bpe(special + _BYTES + tokens, merges, fuse_unk=True, byte_fallback=True)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    post = _bos_in_front("<s>", 1)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_prefix_space": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "use_default_system_prompt": False,
    }
    return _pipeline(model, _added(special, 0), None, metaspace, post, _spaces_back(strip=True)), config


def _gemma(num_merges: int) -> tuple[dict, dict]:
    from tokenizers import normalizers, pre_tokenizers

    # Trained with words apart, used without, because the published one has no pre-tokenizer.
    words = pre_tokenizers.Split("▁", "merged_with_next")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    tokens, merges = _train_bpe(words, num_merges, [], normalizers.Replace(" ", "▁"))
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    control = ["<mask>", "<start_of_turn>", "<end_of_turn>"]
    model = _bpe(special + control + _BYTES + tokens, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
    }
    post = _bos_in_front("<bos>", 2)
    return _pipeline(model, _added(special, 0), spaces, None, post, _spaces_back(strip=False)), config


def _byte_level(num_merges: int, digits: str) -> tuple[list, list, dict]:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(_WORDS % digits), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens, merges = _train_bpe(
        pre_tokenizers.Sequence([split, level]), num_merges, sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    cut = {"type": "Split", "pattern": {"Regex": _WORDS % digits}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return tokens, merges, {"type": "Sequence", "pretokenizers": [cut, level]}


def _byte_bos(num_merges: int) -> tuple[dict, dict]:
    tokens, merges, pre = _byte_level(num_merges, "{1,3}")
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    post = {"type": "Sequence", "processors": [level, _bos_in_front("<|begin_of_text|>", len(tokens))]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
    }
    model = _bpe(tokens, merges, ignore_merges=True)
    return _pipeline(model, _added(special, len(tokens)), None, pre, post, level), config


def _byte_nobos(num_merges: int) -> tuple[dict, dict]:
    tokens, merges, pre = _byte_level(num_merges, "")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    first = len(tokens)
    added = _added(special, first) + _added(plain, first + len(special), special=False)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": special[1:],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 131072,
        "split_special_tokens": False,
    }
    model = _bpe(tokens, merges, continuing_subword_prefix="", end_of_word_suffix="")
    return _pipeline(model, added, {"type": "NFC"}, pre, level, level), config


_MAKERS = {"metaspace_bos": _metaspace_bos, "gemma": _gemma, "byte_bos": _byte_bos, "byte_nobos": _byte_nobos}
