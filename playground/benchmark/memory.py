"""Peak memory of real training runs beside what the planner expects, over a grid, as a table.

    python playground/benchmark/memory.py                    # on an NVIDIA GPU: the comparison that counts
    python playground/benchmark/memory.py --use_cpu True     # on the processor: the growth of the process

Every row is a run of the training command in a process of its own, on a Llama with random weights that is made for it
and on dialogues that fill `--model_max_length`. Writes the table to `--out` (default: the screen). Ends with 1 where a
row is off by more than a tenth, with 6 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat.errors import percent

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

OFF_BY = 0.10
COMMON = ["--disable_tqdm", "True", "--report_to", "none"]
LORA, QLORA, FULL = ["--lora_r", "16"], ["--lora_r", "16", "--q_lora", "True"], []


@dataclass(frozen=True)
class Case:
    """One run: a name, train_lora or train, the flags that are its own, and its microbatch."""

    name: str
    flags: tuple[str, ...]
    batch: int
    length: int
    script: str = "train_lora"


def grid(use_cpu: bool) -> tuple[dict[str, int], str, list[Case]]:
    """(sizes of the model, dtype it is stored in, the cases)."""
    kinds = {"LoRA": ("train_lora", LORA), "QLoRA": ("train_lora", QLORA), "full": ("train", FULL)}
    if use_cpu:
        sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8}
        # Only full fine-tuning has an optimizer state that is worth a second step.
        steps = {name: ("--max_steps", "2" if name == "full" else "1") for name in kinds}
        cases = [Case(name, (*flags, *steps[name]), 2, 512, script) for name, (script, flags) in kinds.items()]
        return sizes | {"num_key_value_heads": 4, "vocab_size": 4096}, "float32", cases
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 8, "num_attention_heads": 32}
    zero = str(ROOT / "playground" / "deepspeed_config_lora_s2.json")
    cases = []
    for name, (script, flags) in kinds.items():
        for checkpointing in ("False", "True"):
            for batch, length in ((4, 1024), (1, 4096)):
                own = (*flags, "--bf16", "True", "--gradient_checkpointing", checkpointing)
                said = f"{name}{', checkpointing' if checkpointing == 'True' else ''}"
                cases.append(Case(said, own, batch, length, script))
    cases += [
        Case("LoRA r64", ("--lora_r", "64", "--bf16", "True"), 4, 1024),
        Case("LoRA without dropout", (*LORA, "--bf16", "True", "--lora_dropout", "0"), 4, 1024),
        Case("LoRA, ZeRO-2", (*LORA, "--bf16", "True", "--deepspeed", zero), 4, 1024),
        Case("QLoRA, ZeRO-2", (*QLORA, "--bf16", "True", "--deepspeed", zero), 4, 1024),
        Case("full, 8-bit AdamW", (*FULL, "--bf16", "True", "--optim", "adamw_8bit"), 4, 1024, "train"),
        Case("full, paged AdamW", (*FULL, "--bf16", "True", "--optim", "paged_adamw_32bit"), 4, 1024, "train"),
        Case("LoRA, flash attention", (*LORA, "--bf16", "True", "--flash_attn", "True"), 4, 1024),
    ]
    return sizes | {"num_key_value_heads": 32, "vocab_size": 32000}, "bfloat16", cases


def measure(case: Case, model: Path, folder: Path, use_cpu: bool) -> dict[str, Any] | str:
    """The record of one run's memory, or the last thing it said where it failed."""
    from playground.benchmark.made import make_rows

    longer = 2 * case.length  # so that every row of a batch has exactly the tokens that a row may have
    out, log = folder / "out" / f"{case.name} {case.batch} x {case.length}", folder / "log.txt"
    words = ["--model_name_or_path", str(model), "--data_path", str(make_rows(folder, (longer, longer), 64))]
    words += ["--conv_template", "vicuna_v1.1", "--max_steps", "2", "--output_dir", str(out), *COMMON, *case.flags]
    words += ["--per_device_train_batch_size", str(case.batch), "--model_max_length", str(case.length)]
    words += ["--use_cpu", "True"] if use_cpu else []
    context: Any = multiprocessing.get_context("forkserver" if use_cpu else "spawn")  # CUDA does not survive a fork
    if use_cpu:
        context.set_forkserver_preload(["fastchat.train.recipe", "peft", "bitsandbytes", "deepspeed", "torch._dynamo"])
    process = context.Process(target=run_training, args=(case.script, words, str(log)))
    process.start()
    process.join()
    if process.exitcode:
        return f"exit code {process.exitcode}: {log.read_text(encoding='utf-8').strip().splitlines()[-1]}"
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    shutil.rmtree(out)  # a whole model each
    return record["memory"]


def run_training(script: str, words: list[str], log: str) -> None:
    """In a process of its own: the training command, its words into `log`."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import importlib

    importlib.import_module(f"fastchat.train.{script}").main(words)


def table(rows: Sequence[tuple[Case, dict[str, Any] | str]]) -> list[str]:
    """Markdown lines: what was run, planned, measured, and how far that is apart."""
    lines = ["| run | batch x tokens | planned (MiB) | measured (MiB) | off by |", "|---|---|---|---|---|"]
    for case, found in rows:
        shape = f"{case.batch} x {case.length}"
        if isinstance(found, str):
            lines.append(f"| {case.name} | {shape} | failed: {found} | | |")
            continue
        planned, measured = (found[f"memory_{what}"] / 2**20 for what in ("predicted", "measured"))
        mark = " (!)" if abs(found["memory_off_by"]) > OFF_BY else ""
        off_by = percent(found["memory_off_by"], sign="+")
        lines.append(f"| {case.name} | {shape} | {planned:,.0f} | {measured:,.0f} | {off_by}{mark} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the grid and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--use_cpu", type=lambda word: word.lower() == "true", default=False)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--only", default="", help="the runs whose name begins like this: full, LoRA, QLoRA")
    asked = parser.parse_args(argv)
    import torch

    if not asked.use_cpu and not torch.cuda.is_available():
        print("no GPU here, so nothing that counts can be measured; --use_cpu True looks at the processor")
        return 6
    os.environ.update(PYTHONPATH=str(ROOT), WANDB_MODE="disabled")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1048576"  # freed tensors go back to the system, so the peak is theirs
    from transformers import LlamaConfig

    from playground.benchmark.made import make_model

    sizes, dtype, cases = grid(asked.use_cpu)
    cases = [case for case in cases if case.name.startswith(asked.only)]
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(**sizes, max_position_embeddings=8192)
        model = make_model(Path(folder) / "model", config, dtype, "cpu" if asked.use_cpu else "cuda")
        rows = [(case, measure(case, model, Path(folder), asked.use_cpu)) for case in cases]
    name = "the processor" if asked.use_cpu else torch.cuda.get_device_name()
    text = "\n".join([f"On {name}, torch {torch.__version__}:", "", *table(rows)]) + "\n"
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")
    print(text)
    good = all(isinstance(found, dict) and abs(found["memory_off_by"]) <= OFF_BY for _, found in rows)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
