"""RoPE scaling earns its place: on a real model, the tuned and scaled one is better beyond its old window."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastchat.checkpoint.trained_model import find_trained, load_trained, load_trained_tokenizer
from fastchat.data.encoding.examples import IGNORED, tokenize_dialogues
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.records import load_dialogues
from tests.train.launches import launch

OLD, NEW = 512, 1024


def _loss_beyond(folder: Path, data: Path) -> float:
    """Mean loss of the supervised tokens at positions from 512 on, in the dialogues of `data` that reach there."""
    import torch
    import torch.nn.functional as F

    tuned = find_trained(str(folder))
    model = load_trained(tuned, device="cpu").eval()
    chat_encoder = tuned.bind(TextEncoder.from_tokenizer(load_trained_tokenizer(tuned)))
    assert chat_encoder is not None
    records = load_dialogues([str(data)], on_bad_row="stop").records
    pairs = [(r.index, r.dialogue) for r in records if r.dialogue is not None]
    total, count = 0.0, 0
    for example in tokenize_dialogues(pairs, chat_encoder, max_length=NEW):
        ids, labels = torch.tensor([example.input_ids]), torch.tensor(example.labels[1:])
        with torch.no_grad():
            losses = F.cross_entropy(model(ids, use_cache=False).logits[0, :-1].float(), labels, reduction="none")
        beyond = labels[OLD:] != IGNORED
        total += losses[OLD:][beyond].sum().item()
        count += int(beyond.sum())
    assert count > 500
    return total / count


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.thorough
def test_scaled_model_is_better_beyond_the_old_window(shared: Path, tmp_path: Path) -> None:
    """Against the same tuning within the model's own window, which is what a run without scaling does."""
    lines = (shared / "data" / "gsm8k_multiturn.jsonl").read_text(encoding="utf-8").splitlines()
    long = [line for line in lines if len(line) > 1000]
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text("\n".join(long[:160]) + "\n", encoding="utf-8")
    held_out.write_text("\n".join(long[-40:]) + "\n", encoding="utf-8")
    losses = {}
    for window in (OLD, NEW):
        flags = [
            *("--model_name_or_path", str(shared / "models" / "stories260K"), "--data_path", str(train)),
            *("--conv_template", "vicuna_v1.1", "--model_max_length", str(window), "--use_cpu", "True"),
            *("--learning_rate", "2e-3", "--per_device_train_batch_size", "8", "--num_train_epochs", "2"),
        ]
        run = launch("python", "train_lora", flags, tmp_path / f"window-{window}")
        assert run.code == 0, run.err
        record = json.loads((run.folder / "training.json").read_text(encoding="utf-8"))
        assert (record["rope_parameters"] or {}).get("factor") == (2.0 if window == NEW else None)
        losses[window] = _loss_beyond(run.folder, held_out)
    print(f"loss beyond position {OLD}: {losses[OLD]:.3f} tuned in the old window, {losses[NEW]:.3f} scaled and tuned")
    assert losses[NEW] < losses[OLD] - 0.2, losses
