"""Adapters with random weights, saved as a run saves them, for tests of loading, merging and chatting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.adapter import write_adapter
from fastchat.checkpoint.gather import IN_PLACE, gather_trained
from fastchat.checkpoint.record import TrainingRecord
from fastchat.data.encoding.saved_template import install_template
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.model.loading import describe_quantization, load_base_model, load_config
from fastchat.model.lora import add_lora
from fastchat.model.rope import choose_rope
from fastchat.model.tokenizer import load_tokenizer


def save_random_adapter(
    folder: Path,
    base: Path,
    *,
    template: str = "vicuna_v1.1",
    q_lora: bool = False,
    dtype: Any = "auto",
    length: int = 256,
    rope_type: str | None = None,
    spread: float = 0.1,
    with_record: bool = True,
    **lora: Any,
) -> tuple[Path, Any]:
    """(folder of the adapter, the PeftModel in memory), every trained tensor drawn from N(0, `spread`)."""
    config = load_config(str(base))
    rope = choose_rope(config, type=rope_type, model_max_length=length)
    model = load_base_model(str(base), rope=rope, quantization=q_lora, dtype=dtype)
    peft_model = add_lora(model, **{"r": 4, "alpha": 8, "dropout": 0.0} | lora)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * spread)
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(folder, peft_model, gather_trained(peft_model, IN_PLACE))
    if with_record:
        tokenizer, _ = load_tokenizer(str(base))
        encoder = TextEncoder.from_tokenizer(tokenizer)
        chat_encoder = encoder.bind(encoder.choose(template))
        install_template(tokenizer, chat_encoder)
        tokenizer.save_pretrained(folder)
        nf4 = describe_quantization(model)
        TrainingRecord(
            base_model=str(base),
            template={"name": template, "definition": chat_encoder.template.to_dict()},
            rope_parameters=rope.rope_parameters if rope else None,
            max_position_embeddings=rope.max_position_embeddings if rope else None,
            quantization=nf4 if q_lora else None,
            dtype=str(model.dtype).removeprefix("torch."),
        ).write(folder)
    return folder, peft_model.eval()


@torch.no_grad()
def logits(model: Any, num_tokens: int = 48, seed: int = 3) -> torch.Tensor:
    """[1, T, V] in float32 for a fixed row of random ids."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (1, num_tokens), generator=torch.Generator().manual_seed(seed))
    return model(input_ids=ids).logits.float()
