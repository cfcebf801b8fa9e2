"""Models with random weights and dialogues of a given length, for benchmarks that must not download anything."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def make_model(folder: Path, config: Any, dtype: str = "bfloat16", device: str = "cpu") -> Path:
    """A model of `config`, and a tokenizer of single bytes, with which a text has as many tokens as bytes.

    The weights are drawn on `device`: on a GPU that takes seconds for a large one in place of minutes.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "<pad>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()  # the runs that follow are other processes on the same GPU
    return folder


def make_rows(folder: Path, lengths: tuple[int, int], rows: int) -> Path:
    """`rows` dialogues of one question and an answer of so many tokens, drawn evenly between the two `lengths`."""
    draw = random.Random(0)
    dialogues = []
    for i in range(rows):
        answer = " ".join(str(draw.randrange(1000)) for _ in range(lengths[1]))[: draw.randint(*lengths)]
        turns = [{"from": "human", "value": "Say numbers."}, {"from": "gpt", "value": answer}]
        dialogues.append({"id": str(i), "conversations": turns})
    path = folder / f"rows_{lengths[0]}_{lengths[1]}_{rows}.json"
    path.write_text(json.dumps(dialogues), encoding="utf-8")
    return path
