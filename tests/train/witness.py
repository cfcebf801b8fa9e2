"""What a run's engine holds after saving, told by itself: its weights, gathered its own way, and what it generates.

Inside the processes of a run. WITNESS=DIR writes DIR/engine.safetensors and DIR/tokens.json right after the result is
saved; HEAD_ROWS=7 makes the chunks of the head so small, MAX_SHARD=40KB the files of the result, ANSWER_TOKENS=9 the
answers of --sample_prompts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

PROMPT, NEW = list(range(10, 18)), 12


def install() -> None:
    """Applies the environment. To be called before the run begins."""
    if "HEAD_ROWS" in os.environ:
        from fastchat.train import head

        head.rows_per_chunk = lambda vocab: int(os.environ["HEAD_ROWS"])
    if "ANSWER_TOKENS" in os.environ:
        from fastchat.train import answers

        answers.NEW_TOKENS = int(os.environ["ANSWER_TOKENS"])
    if "MAX_SHARD" in os.environ:
        from fastchat.checkpoint import full

        full.MAX_SHARD = os.environ["MAX_SHARD"]
    if "WITNESS" in os.environ:
        _watch(Path(os.environ["WITNESS"]))


def _watch(folder: Path) -> None:
    from fastchat.train import result

    real = result.save

    def save(run: Any, record: Any, trainer: Any, target: str) -> None:
        real(run, record, trainer, target)
        if Path(target).resolve() == Path(str(trainer.args.output_dir)).resolve():
            weights, tokens = _weights(trainer), generated(trainer.model)
            if trainer.args.process_index == 0:
                _write(folder, weights, tokens)

    result.save = save


def _weights(trainer: Any) -> dict[str, Any]:
    """Every name of the model; rank 0 alone has them all under ZeRO-3."""
    engine = trainer.model_wrapped
    if trainer.is_deepspeed_enabled and engine.zero_optimization_stage() == 3:
        return engine._zero3_consolidated_16bit_state_dict() or {}
    state = trainer.model.state_dict()
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in state.items()}  # FSDP's are parts


def generated(model: Any) -> list[int]:
    """Greedy tokens; every process takes part."""
    import torch

    with torch.no_grad():
        ids = model.eval().generate(
            torch.tensor([PROMPT]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=False
        )
    return ids[0].tolist()


def _write(folder: Path, weights: dict[str, Any], tokens: list[int]) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file({name: tensor.detach().cpu().clone() for name, tensor in weights.items()}, folder / "engine.safetensors")
    (folder / "tokens.json").write_text(json.dumps(tokens))
