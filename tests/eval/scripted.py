"""A model of the real architecture whose next token is that of a script, for what a model might write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from fastchat.checkpoint.trained_model import TrainedModel
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.eval.loading import Loaded


class Scripted(LlamaForCausalLM):
    """Writes `say(text so far)`, and then its EOS. `calls`: the number of forward passes."""

    tokenizer: Any
    say: Callable[[str], str]
    calls = 0

    def prepare_inputs_for_generation(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **_: Any) -> Any:
        self.calls += 1
        logits_BTV = torch.zeros(*input_ids.shape, self.config.vocab_size)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            logits_BTV[row, -1, self._next(ids[mask.bool()].tolist())] = 9.0
        return CausalLMOutputWithPast(logits=logits_BTV)

    def _next(self, ids: list[int]) -> int:
        said = self.tokenizer.encode(self.say(self.tokenizer.decode(ids)), add_special_tokens=False)
        done = next(size for size in range(min(len(said), len(ids)), -1, -1) if ids[len(ids) - size :] == said[:size])
        return said[done] if done < len(said) else self.tokenizer.eos_token_id


def scripted(folder: Path, script: Mapping[str, Sequence[str]]) -> Loaded:
    """`script`: a word of the question -> the turns of the answer; the last one is repeated. The vicuna template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def say(text: str) -> str:
        word = next(word for word in script if f"({word})" in text)
        return script[word][min(text.count("```output"), len(script[word]) - 1)]

    model = Scripted(LlamaConfig.from_pretrained(folder)).eval()
    model.tokenizer, model.say = tokenizer, say
    encoder = TextEncoder.from_tokenizer(tokenizer)
    trained = TrainedModel(str(folder), str(folder), is_adapter=False, record=None)
    return Loaded(model, encoder.bind(encoder.choose("vicuna_v1.1")), 0, trained)
