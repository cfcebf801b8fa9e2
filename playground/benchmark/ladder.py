"""Tokens per second of LoRA on one GPU, from plain transformers and PEFT up, a rung at a time.

    python playground/benchmark/ladder.py --out gpu          # under 12 minutes on an H200; also gpu.py --only ladder
    python playground/benchmark/ladder.py --out gpu --toy    # the same code with a tiny model on a CPU

The most important rungs come first, and each is in `ladder.json` as soon as it is measured; what `--minutes` does not
leave time for, and what this version has no setting for, is there with the reason. Models have the shapes of Llama-2-7B
and Llama-3.1-8B and random weights; LoRA of rank 16 on all linear layers, 4,096 tokens in a row, bf16. Rows are
dialogues of 200 to 4,000 tokens, so a padded batch is mostly padding and only real tokens count. "share" is that of the
matrix products of the frozen linear layers (4 operations for each weight and token) in the peak of a large product,
measured first on the same GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LLAMA2 = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA2 |= {"num_key_value_heads": 32, "vocab_size": 32000}
LLAMA31 = LLAMA2 | {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}
TOY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TOY |= {"num_key_value_heads": 2, "vocab_size": 320}
GOAL = 15_000  # tokens per second of LoRA on 7B, on an H200; QLoRA at least 0.9 of it
SETTINGS = {
    "liger": {"use_liger_kernel": True},
    "compile": {"torch_compile": True},
    "fused LoRA": {"fused_lora": True},
    "QLoRA": {"q_lora": True},
}


@dataclass(frozen=True)
class Rung:
    """One measurement: `parts` are names in SETTINGS on top of packing, None for transformers and PEFT alone."""

    model: str
    batch: int
    parts: tuple[str, ...] | None

    @property
    def name(self) -> str:
        how = "HF + PEFT, padded" if self.parts is None else " + ".join(["packing", *self.parts])
        return f"{self.model}, {self.batch} row{'s' if self.batch > 1 else ''}, {how}"


def rungs(models: list[str]) -> list[Rung]:
    """In the order of their importance."""
    if models == ["toy"]:
        return [Rung("toy", 2, parts) for parts in (None, (), ("QLoRA",), ("liger", "compile"))]
    full = ("liger", "compile")
    first, *others = models
    order = [Rung(first, 4, full), Rung(first, 4, None), Rung(first, 4, ()), Rung(first, 4, (*full, "QLoRA"))]
    order += [Rung(first, 4, ("liger",)), Rung(first, 4, (*full, "fused LoRA")), Rung(first, 1, full)]
    order += [Rung(first, 1, None), Rung(first, 4, ("QLoRA",))]
    for other in others:
        order += [Rung(other, 4, full), Rung(other, 4, None), Rung(other, 4, (*full, "QLoRA")), Rung(other, 1, full)]
    return order


class Ladder:
    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        self.toy, self.out, self.work = asked.toy, asked.out, work
        self.until = time.monotonic() + 60 * asked.minutes
        self.shapes = {"toy": TOY} if self.toy else {"Llama-2-7B": LLAMA2, "Llama-3.1-8B": LLAMA31}
        self.length, self.steps = (512, 4) if self.toy else (4096, 12)
        self.found: dict[str, Any] = {"rungs": {}, "goal": f"{GOAL:,} tokens/s of LoRA on 7B, QLoRA 0.9 of it"}
        words = [sys.executable, "-m", "fastchat.train.train_lora", "--help"]
        self.help = subprocess.run(words, capture_output=True, text=True, check=True, env=environment()).stdout

    def write(self) -> None:
        (self.out / "ladder.json").write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def climb(self) -> None:
        self.found["machine"], self.found["peak_flops"] = peak(self.toy)
        self.write()
        for model, shape in self.shapes.items():
            folder = None
            for rung in (rung for rung in rungs(list(self.shapes)) if rung.model == model):
                result = self.unavailable(rung)
                if result is None:
                    folder = folder or self.make(shape)
                    result = self.measure(rung, folder)
                self.found["rungs"][rung.name] = result
                print(f"{rung.name}: " + "  ".join(f"{key} {value}" for key, value in result.items()), flush=True)
                self.write()
            if folder is not None:
                shutil.rmtree(folder)

    def unavailable(self, rung: Rung) -> dict[str, Any] | None:
        settings = [key for part in rung.parts or () for key in SETTINGS[part]]
        unknown = [f"--{key}" for key in settings if not re.search(rf"--{key}\b", self.help)]
        if unknown:
            return {"skipped": f"this version has no {' or '.join(unknown)}"}
        if time.monotonic() > self.until:
            return {"skipped": "no time left (--minutes)"}
        return None

    def make(self, shape: dict[str, int]) -> Path:
        from transformers import AutoConfig

        from playground.benchmark.made import make_model

        config = AutoConfig.for_model("llama", max_position_embeddings=self.length, **shape)
        folder = Path(tempfile.mkdtemp(dir=self.work))
        return make_model(folder, config, "bfloat16", "cpu" if self.toy else "cuda")

    def measure(self, rung: Rung, model: Path) -> dict[str, Any]:
        from playground.benchmark.made import make_rows

        bounds = (self.length // 20, self.length * 9 // 10)
        data = make_rows(self.work, bounds, 16 * self.steps * rung.batch)
        folder = Path(tempfile.mkdtemp(dir=self.work))
        if rung.parts is None:
            asked = [str(model), str(data), str(rung.batch), str(self.length), str(self.steps), str(folder)]
            words = [sys.executable, __file__, "--plain", *asked, *(["--toy"] if self.toy else [])]
        else:
            words = [sys.executable, "-m", "fastchat.train.train_lora", *self.words(rung, model, data, folder)]
        times = self.run(words, folder, re.sub(r"\W+", "_", rung.name))
        if isinstance(times, str):
            return {"failed": times}
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        memory = record["memory"]
        shutil.rmtree(folder)
        rate = tokens_per_second(times)
        share = 4 * linear_weights(self.shapes[rung.model]) * rate / self.found["peak_flops"]
        found = {"tokens/s": round(rate), "share": round(share, 3)}
        for name in ("predicted", "measured"):
            if f"memory_{name}" in memory:
                found[f"{name} GiB"] = round(memory[f"memory_{name}"] / 2**30, 2)
        return found

    def words(self, rung: Rung, model: Path, data: Path, folder: Path) -> list[str]:
        settings: dict[str, Any] = {"model_name_or_path": model, "data_path": data, "conv_template": "vicuna_v1.1"}
        settings |= {"output_dir": folder, "model_max_length": self.length, "bf16": True, "packing": True}
        settings |= {"per_device_train_batch_size": rung.batch, "max_steps": self.steps, "logging_steps": 1}
        settings |= {"lora_r": 16, "lora_dropout": 0, "gradient_checkpointing": False, "save_strategy": "no"}
        settings |= {"run_report": "none", "disable_tqdm": True, **({"use_cpu": True} if self.toy else {})}
        for part in rung.parts or ():
            settings |= SETTINGS[part]
        return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]

    def run(self, words: list[str], folder: Path, name: str) -> list[tuple[float, int]] | str:
        """(end, tokens) of every step by the clock, or why the command failed."""
        ends: list[tuple[float, int]] = []
        with open(self.out / f"ladder_{name}.log", "w+b") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environment())
            while process.poll() is None:
                now = time.perf_counter()
                ends += [(now, row["num_tokens"]) for row in logged(folder)[len(ends) :]]
                time.sleep(0.005)
            now = time.perf_counter()
            ends += [(now, row["num_tokens"]) for row in logged(folder)[len(ends) :]]
            log.seek(0)
            said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return ends if process.returncode == 0 else f"exit code {process.returncode}: {''.join(said[-1:])[:300]}"


def logged(folder: Path) -> list[dict[str, Any]]:
    """The steps in metrics.jsonl, which may be read while a line is written."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [row for row in map(json.loads, text[: text.rfind("\n") + 1].splitlines()) if "loss" in row]


def tokens_per_second(steps: list[tuple[float, int]]) -> float:
    """From the end of the first half, in which kernels are made and compiled, to the last step.

    >>> tokens_per_second([(0.0, 9), (5.0, 9), (6.0, 10), (7.0, 20)])
    15.0
    """
    half = len(steps) // 2 - 1
    return sum(tokens for _, tokens in steps[half + 1 :]) / max(steps[-1][0] - steps[half][0], 1e-9)


def linear_weights(shape: dict[str, int]) -> int:
    """Weights of the linear layers and of the output matrix, which every token passes."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    keys = hidden // heads * shape["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * shape["intermediate_size"]
    return layer * shape["num_hidden_layers"] + hidden * shape["vocab_size"]


def peak(toy: bool) -> tuple[str, float]:
    """(name of the device, operations per second of a large product in bf16): the best of several."""
    import torch

    size, device = (256, "cpu") if toy else (8192, "cuda")
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        wait(toy)
        begun = time.perf_counter()
        for _ in range(10):
            a @ b
        wait(toy)
        best = min(best, (time.perf_counter() - begun) / 10)
    return "CPU (toy)" if toy else torch.cuda.get_device_name(), 2 * size**3 / best


def wait(toy: bool) -> None:
    """Until the device has done everything."""
    import torch

    if not toy:
        torch.cuda.synchronize()


def plain(model: str, data: str, batch: int, length: int, steps: int, out: Path, toy: bool) -> None:
    """transformers and PEFT alone, padded batches: leaves metrics.jsonl and training.json as a run here does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cpu" if toy else "cuda"
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa")
    adapted: Any = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.to(device).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-5)
    texts = [" ".join(t["value"] for t in row["conversations"]) for row in json.loads(Path(data).read_text("utf-8"))]
    with open(out / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(steps):
            rows = tokenizer(texts[step * batch : (step + 1) * batch], truncation=True, max_length=length, padding=True)
            ids, mask = (torch.tensor(rows[key], device=device) for key in ("input_ids", "attention_mask"))
            with torch.autocast(device, torch.bfloat16):
                loss = adapted(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            wait(toy)
            file.write(json.dumps({"loss": loss.item(), "num_tokens": int(mask.sum())}) + "\n")
            file.flush()
    memory = {} if toy else {"memory_measured": torch.cuda.max_memory_allocated()}
    (out / "training.json").write_text(json.dumps({"memory": memory}), encoding="utf-8")


def environment() -> dict[str, str]:
    own = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | own | {"PYTHONPATH": str(ROOT)}


def main() -> int:
    if "--plain" in sys.argv:
        model, data, batch, length, steps, out = sys.argv[2:8]
        plain(model, data, int(batch), int(length), int(steps), Path(out), "--toy" in sys.argv)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for ladder.json and the logs")
    parser.add_argument("--minutes", type=float, default=11.0, help="begin no rung later (%(default)s)")
    parser.add_argument("--toy", action="store_true", help="a tiny model on a CPU")
    asked = parser.parse_args()
    import torch

    if not asked.toy and not torch.cuda.is_available():
        print("no GPU here, so nothing of this can be measured; --toy runs the code on a CPU")
        return 6
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        ladder = Ladder(asked, Path(work))
        ladder.climb()
    return 1 if any("failed" in result for result in ladder.found["rungs"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
