"""What only a GPU can show, in one command: every check that one NVIDIA GPU of 80 GB can do, several at once.

    python playground/benchmark/gpu.py --out gpu            # about ten minutes; a line per check, and a log of each
    python playground/benchmark/gpu.py --out gpu --only resume engines

Downloads nothing: models have random weights, and the quickstart makes its own. Memory is what each process' tensors
take, so checks that compute something else at the same time do not disturb it; what is timed runs at the end, alone.
Writes `results.json` and the logs into `--out`. Ends with 1 where a check failed, with 6 where there is no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
HERE = Path(__file__).resolve().parent
ZERO = ROOT / "playground"
# Small enough to be made at once, large enough for the kernels of a real model: heads of 64, grouped.
SMALL = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 8192, "max_position_embeddings": 4096}


class Failed(Exception):
    """A check did not find what it expects."""


@dataclass
class Checks:
    """Runs commands for the checks, keeps their logs, and collects what they found."""

    out: Path
    work: Path
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    making: Any = field(default_factory=threading.Lock)

    def run(
        self, name: str, words: Sequence[Any], codes: Sequence[int] = (0,), env: dict[str, str] | None = None
    ) -> str:
        """Ends when the command has; what it printed. Failed where it ends with none of `codes`."""
        log = self.out / f"{name}.log"
        with open(log, "ab") as file:
            at = file.tell()
            done = subprocess.run(
                list(map(str, words)), stdout=file, stderr=file, env=os.environ | (env or {}), check=False
            )
        text = log.read_bytes()[at:].decode(errors="replace")
        if done.returncode not in codes:
            last = [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-1:]
            raise Failed(f"exit code {done.returncode}: {''.join(last)[:300]}")
        return text

    def train(self, name: str, script: str, folder: Path, flags: Sequence[Any]) -> tuple[dict, str]:
        """(training.json, what was printed) of one training run in one process."""
        words = [sys.executable, "-m", f"fastchat.train.{script}", *flags, "--output_dir", folder]
        text = self.run(name, [*words, "--disable_tqdm", "True"])
        return json.loads((folder / "training.json").read_text(encoding="utf-8")), text

    def model(self, kind: str, dtype: str, device: str, **sizes: int) -> Path:
        """The folder of a new model with random weights."""
        with self.making:  # transformers' first import and torch's default dtype are one for all threads
            from transformers import AutoConfig

            from playground.benchmark.made import make_model

            folder = Path(tempfile.mkdtemp(dir=self.work, prefix=kind))
            return make_model(folder, AutoConfig.for_model(kind, **sizes), dtype, device)

    def rows(self, lengths: tuple[int, int], number: int) -> Path:
        """The file of `number` dialogues whose answers have so many tokens."""
        from playground.benchmark.made import make_rows

        return make_rows(Path(tempfile.mkdtemp(dir=self.work)), lengths, number)

    def take(self, name: str, check: Callable[[Checks], dict[str, Any]]) -> None:
        """One check: what it found, or why it failed, as a line and in results.json."""
        start = time.perf_counter()
        try:
            result = {"ok": True, **check(self)}
        except Exception as error:
            if not isinstance(error, Failed):  # a mistake of the check itself: it did not pass either
                traceback.print_exc()
            result = {"ok": False, "why": str(error) or repr(error)}
        result["seconds"] = round(time.perf_counter() - start)
        self.found[name] = result
        words = "  ".join(f"{key} {value}" for key, value in result.items() if key != "ok")
        print(f"{'ok  ' if result['ok'] else 'FAIL'} {name}: {words}", flush=True)
        (self.out / "results.json").write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)


def steps(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that are training steps; none where it does not exist yet."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # it may be read while a row is written
    return [row for row in map(json.loads, lines) if "loss" in row]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in steps(folder)]


def small(checks: Checks, kind: str, dtype: str = "float32") -> Path:
    """A small model of an architecture, in a folder of its own."""
    more = {"head_dim": 64} if kind.startswith("gemma") else {}
    return checks.model(kind, dtype, "cpu", **SMALL, **more)


def memory(only: str) -> Callable[[Checks], dict[str, Any]]:
    """The planner against torch.cuda.max_memory_allocated."""

    def check(checks: Checks) -> dict[str, Any]:
        table = checks.out / f"memory_{only}.md"
        checks.run(f"memory_{only}", [sys.executable, HERE / "memory.py", "--only", only, "--out", table], codes=(0, 1))
        off = [float(word) for word in re.findall(r"([-+][\d.]+)%", table.read_text(encoding="utf-8"))]
        expect("failed" not in table.read_text(encoding="utf-8"), f"a run failed, see {table}")
        expect(max(map(abs, off)) <= 10, f"off by {min(off):+} to {max(off):+} %")
        return {"runs": len(off), "off by": f"{min(off):+} to {max(off):+} %"}

    return check


def packing(checks: Checks) -> dict[str, Any]:
    """Packed = unpacked on the kernel that this machine packs with, for architectures whose attention differs."""
    found: dict[str, Any] = {}
    data = checks.rows((50, 700), 24)
    for kind in ("llama", "mistral", "gemma", "gemma2"):
        for dtype in ("float32", "bfloat16"):
            flags = ["--model_name_or_path", small(checks, kind, dtype), "--data_path", data]
            flags += ["--conv_template", "vicuna_v1.1", "--model_max_length", "1024", "--max_steps", "2"]
            flags += ["--bf16", dtype == "bfloat16", "--packing", "True", "--verify_packing", "True"]
            record, text = checks.train("packing", "train", checks.work / f"pack-{kind}-{dtype}", flags)
            verified = re.search(r"packing verified on .*", text)
            expect(verified is not None, f"{kind} {dtype}: not verified")
            expect(record["attention"] in ("flash_attention_2", "flex_attention"), f"{kind}: {record['attention']}")
            found[f"{kind} {dtype}"] = f"{record['attention']}, {verified[0] if verified else ''}"
    return found


def quickstart(checks: Checks) -> dict[str, Any]:
    """The README's first command, on the GPU; then nf4 on its base, and the merged model next to the adapter."""
    text = checks.run("quickstart", ["bash", ROOT / "scripts" / "quickstart.sh"])
    work, eval_rows = ROOT / ".cache" / "quickstart", ROOT / ".cache" / "quickstart" / "chat_eval.json"
    record = json.loads((work / "adapter" / "training.json").read_text(encoding="utf-8"))
    expect(record["device"] == "cuda" and record["engine"] == "zero2", f"{record['device']}, {record['engine']}")
    expect("the plan is wrong" not in text, "the planner was wrong")
    common = ["--eval_data_path", eval_rows, "--conv_template", "vicuna_v1.1", "--model_max_length", "256"]
    common += ["--eval_on_start", "True", "--eval_strategy", "epoch", "--per_device_train_batch_size", "16"]
    flags = ["--model_name_or_path", work / "base", "--data_path", work / "chat_train.json", "--q_lora", "True"]
    flags += [*common, "--lora_r", "16", "--lora_alpha", "16", "--learning_rate", "3e-3", "--num_train_epochs", "3"]
    adapter, merged = checks.work / "nf4", checks.work / "merged"
    nf4, _ = checks.train("nf4", "train_lora", adapter, flags)
    expect((nf4["quantization"] or {}).get("type") == "nf4", f"quantization: {nf4['quantization']}")
    paths = ["--base-model-path", work / "base", "--lora-path", adapter, "--target-model-path", merged]
    checks.run("nf4", [sys.executable, "-m", "fastchat.model.apply_lora", *paths])
    again = ["--model_name_or_path", merged, "--data_path", eval_rows, *common, "--max_steps", "1"]
    whole, _ = checks.train("nf4", "train", checks.work / "again", again)
    before, after = nf4["metrics"]["eval_loss"], whole["metrics"]["eval_loss_before"]
    expect(abs(after - before) <= 0.01 * before + 1e-3, f"the adapter's loss is {before:.4f}, merged {after:.4f}")
    right = re.search(r"base \d+.*", text)
    return {"answers": right[0] if right else "?", "nf4 adapter": round(before, 4), "merged": round(after, 4)}


def optimizers(checks: Checks) -> dict[str, Any]:
    """What falls back on a CPU does not here: tf32, fused, 8-bit and paged optimizers."""
    found, data, model = {}, checks.rows((50, 300), 16), small(checks, "llama")
    for optim in ("adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"):
        flags = ["--model_name_or_path", model, "--data_path", data, "--conv_template", "vicuna_v1.1"]
        flags += ["--model_max_length", "512", "--max_steps", "4", "--tf32", "True", "--optim", optim]
        record, text = checks.train("optimizers", "train", checks.work / optim, flags)
        expect("needs a" not in text, f"{optim}: fell back")
        found[optim] = record["optimizer"]
    return found


def engines(checks: Checks) -> dict[str, Any]:
    """One process plain and under every ZeRO stage, in float32: the same losses; the result verifies."""
    found, data, model = {}, checks.rows((50, 300), 32), small(checks, "llama")
    flags = ["--model_name_or_path", model, "--data_path", data, "--conv_template", "vicuna_v1.1", "--max_steps", "6"]
    flags += ["--model_max_length", "512", "--per_device_train_batch_size", "2", "--logging_steps", "1"]
    checks.train("engines", "train", checks.work / "plain", flags)
    for at, stage in enumerate(("s2", "s2_offload", "s3", "s3_offload")):
        launcher = [
            "deepspeed",
            "--num_gpus",
            "1",
            "--master_port",
            29610 + at,
            ROOT / "fastchat" / "train" / "train.py",
        ]
        folder = checks.work / stage
        config = ["--deepspeed", ZERO / f"deepspeed_config_{stage}.json"]
        checks.run("engines", [*launcher, *flags, *config, "--output_dir", folder, "--disable_tqdm", "True"])
        checks.run("engines", [sys.executable, "-m", "fastchat.checkpoint.verify", folder])
        apart = max(abs(a - b) for a, b in zip(losses(folder), losses(checks.work / "plain"), strict=True))
        expect(apart < 1e-3, f"{stage}: losses differ by {apart:.1e} from those of one plain process")
        found[stage] = f"{apart:.0e}"
    return found


def precision(checks: Checks) -> dict[str, Any]:
    """fp16 with its loss scaling, which a CPU lacks, and bf16, plain and under DeepSpeed: float32's losses, roughly."""
    found, data, model = {}, checks.rows((50, 300), 64), small(checks, "llama")
    flags = ["--model_name_or_path", model, "--data_path", data, "--conv_template", "vicuna_v1.1", "--max_steps", "12"]
    flags += ["--model_max_length", "512", "--lora_dropout", "0", "--learning_rate", "1e-2"]
    wanted, _ = checks.train("precision", "train_lora", checks.work / "float32", flags)
    for at, (half, stage) in enumerate(itertools.product(("fp16", "bf16"), ("", "s2", "s3"))):
        folder, script = checks.work / f"{half}{stage}", ROOT / "fastchat" / "train" / "train_lora.py"
        config = ["--deepspeed", ZERO / f"deepspeed_config_lora_{stage}.json"] if stage else []
        launcher = ["deepspeed", "--num_gpus", "1", "--master_port", 29630 + at] if stage else [sys.executable]
        words = [*launcher, script, *flags, f"--{half}", "True", *config, "--output_dir", folder]
        checks.run("precision", [*words, "--disable_tqdm", "True"])
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        apart = abs(record["metrics"]["train_loss"] - wanted["metrics"]["train_loss"])
        expect(record["compute_dtype"] == {"fp16": "float16", "bf16": "bfloat16"}[half], f"{record['compute_dtype']}")
        expect(apart < 0.2, f"{half} {stage}: mean loss off by {apart:.3f}")
        found[f"{half} {stage or 'plain'}"] = f"{apart:.0e}"
    return found


def resume(checks: Checks) -> dict[str, Any]:
    """Stopped in the middle by SIGTERM, resumed: with --full_determinism every loss bit for bit that of the
    uninterrupted run, without it that loss up to what kernels that add up in changing order do."""
    found, data, model = {}, checks.rows((50, 300), 200), small(checks, "llama")
    common = ["--model_name_or_path", model, "--data_path", data, "--conv_template", "vicuna_v1.1", "--bf16", "True"]
    common += ["--model_max_length", "512", "--max_steps", "60", "--logging_steps", "1", "--disable_tqdm", "True"]
    exact = ["--full_determinism", "True"]
    kinds = {
        "full": ("train", exact, 0.0),
        "QLoRA, paged 8-bit AdamW": ("train_lora", [*exact, "--q_lora", "True", "--optim", "paged_adamw_8bit"], 0.0),
        "full, any order": ("train", [], 1e-2),
        "packed, any order": ("train", ["--packing", "True"], 1e-2),
    }
    for at, (name, (script, more, allowed)) in enumerate(kinds.items()):
        whole, folder = checks.work / f"whole-{at}", checks.work / f"stopped-{at}"
        checks.train("resume", script, whole, [*common, *more])
        words = [sys.executable, "-m", f"fastchat.train.{script}", *common, *more, "--output_dir", folder]
        with open(checks.out / "resume.log", "ab") as log:
            process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log)
            while process.poll() is None and len(steps(folder)) < 9:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            code = process.wait()
        expect(code == 75, f"{name}: stopped by SIGTERM, it ended with {code} and not 75")
        stopped = len(steps(folder))
        checks.run("resume", words)
        apart = max(abs(a - b) for a, b in zip(losses(folder), losses(whole), strict=True))
        found[name] = f"stopped after step {stopped} of 60, losses off by {apart:.0e}"
        expect(apart <= allowed, f"{name}: {found[name]}")
    return found


def out_of_memory(checks: Checks) -> dict[str, Any]:
    """A batch that no GPU holds: exit code 6, and the settings to lower."""
    flags = ["--model_name_or_path", small(checks, "llama"), "--data_path", checks.rows((3500, 3500), 600)]
    flags += ["--conv_template", "vicuna_v1.1", "--model_max_length", "4096", "--per_device_train_batch_size", "600"]
    words = [sys.executable, "-m", "fastchat.train.train", *flags, "--output_dir", checks.work / "oom"]
    text = checks.run("out_of_memory", words, codes=(6,))
    (said,) = re.findall(r"^error: .*", text, re.MULTILINE)
    expect("Traceback" not in text, "a traceback")
    return {"said": said[:400]}


def documented(size: str) -> Callable[[Checks], dict[str, Any]]:
    """scripts/train_lora_{size}_base.sh with its own values and a model of the real size, for a few steps."""
    sizes = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}

    def check(checks: Checks) -> dict[str, Any]:
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        more = dict(zip(keys, sizes[size], strict=True)) | {"vocab_size": 32000, "max_position_embeddings": 4096}
        model = checks.model("llama", "bfloat16", "cuda", **more)
        settings = {"MODEL": str(model), "DATA": str(checks.rows((2000, 2000), 128)), "NUM_GPUS": "1"}
        settings |= {"OUTPUT_DIR": str(checks.work / f"out-{size}"), "SAVE_STRATEGY": "no"}
        settings |= {"MASTER_PORT": str(29650 + len(size))}
        script = ROOT / "scripts" / f"train_lora_{size}_base.sh"
        checks.run(f"documented_{size}", ["bash", script, "--max_steps", "3", "--disable_tqdm", "True"], env=settings)
        shutil.rmtree(model)
        record = json.loads((checks.work / f"out-{size}" / "training.json").read_text(encoding="utf-8"))
        planned, measured = (record["memory"][f"memory_{what}"] / 2**30 for what in ("predicted", "measured"))
        batch = "{} x {}".format(*record["memory"]["largest_batch"])
        expect(abs(planned / measured - 1) <= 0.1, f"{batch}: planned {planned:.2f}, measured {measured:.2f} GiB")
        return {"batch": batch, "planned": f"{planned:.2f} GiB", "measured": f"{measured:.2f} GiB"}

    return check


def head(checks: Checks) -> dict[str, Any]:
    """The chunked head beside all logits: equal, then time and memory."""
    found = {}
    for name, more in {"trained": [], "frozen": ["--frozen"], "vocabulary 128,256": ["--vocab", "128256"]}.items():
        words = [HERE / "head.py", "--tokens", "8192", "--hidden", "3072", "--dtype", "bfloat16", *more]
        text = checks.run("head", [sys.executable, *words])
        found[name] = text.strip().splitlines()[-1]
    return found


def packing_speed(checks: Checks) -> dict[str, Any]:
    """Tokens per second of full fine-tuning with and without packing, a model of Gemma 2B's size, short dialogues."""
    sizes = {"head_dim": 256, "num_key_value_heads": 1, "num_attention_heads": 8, "num_hidden_layers": 18}
    model, found = checks.model("gemma", "bfloat16", "cuda", **sizes), {}
    common = ["--model_name_or_path", model, "--data_path", checks.rows((100, 1000), 600), "--max_steps", "30"]
    common += ["--conv_template", "vicuna_v1.1", "--model_max_length", "4096", "--bf16", "True", "--logging_steps", "1"]
    common += ["--gradient_checkpointing", "True", "--save_strategy", "no", "--disable_tqdm", "True"]
    for packed, batch in (("False", 8), ("True", 2)):
        folder = checks.work / f"speed-{packed}"
        words = [sys.executable, "-m", "fastchat.train.train", *common, "--output_dir", folder]
        words += ["--packing", packed, "--per_device_train_batch_size", batch]
        ends: dict[int, float] = {}
        with open(checks.out / "packing_speed.log", "ab") as log:
            process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log)
            while process.poll() is None:
                ends.setdefault(len(steps(folder)), time.perf_counter())
                time.sleep(0.01)
        expect(process.returncode == 0, f"exit code {process.returncode}")
        first, last = (max(key for key in ends if key <= at) for at in (10, 30))  # kernels are compiled before
        tokens = sum(row["num_tokens"] for row in steps(folder)[first:last])
        attention = json.loads((folder / "training.json").read_text(encoding="utf-8"))["attention"]
        found[f"packing {packed}"] = f"{tokens / (ends[last] - ends[first]):,.0f} tokens/s, {attention}"
    return found


def ladder(checks: Checks) -> dict[str, Any]:
    """Tokens per second from plain transformers and PEFT up; under 12 minutes, so only if it is asked for."""
    checks.run("ladder", [sys.executable, HERE / "ladder.py", "--out", checks.out])
    rungs = json.loads((checks.out / "ladder.json").read_text(encoding="utf-8"))["rungs"]
    return {name: result.get("tokens/s", "skipped") for name, result in rungs.items()}


LANES: list[list[tuple[str, Callable[[Checks], dict[str, Any]]]]] = [
    [("memory, full", memory("full"))],
    [("memory, QLoRA", memory("QLoRA"))],
    [("memory, LoRA", memory("LoRA"))],
    [("packing", packing)],
    [("resume", resume)],
    [("quickstart and nf4", quickstart), ("optimizers", optimizers)],
    [("engines", engines)],
    [("precision", precision)],
    [("documented 7b", documented("7b")), ("documented 13b", documented("13b"))],
]
ALONE = [("out of memory", out_of_memory), ("head", head), ("packing speed", packing_speed)]
ASKED = [("ladder", ladder)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the lanes beside each other, then what is timed; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results.json")
    parser.add_argument("--only", nargs="*", help="the checks whose name begins with one of these words")
    asked = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        print("no GPU here, so nothing of this can be checked")
        return 6
    os.environ.update(WANDB_MODE="disabled", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", PYTHONUNBUFFERED="1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    asked.out.mkdir(parents=True, exist_ok=True)
    print(f"On {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        checks = Checks(asked.out, Path(work))

        def go(lane: Sequence[tuple[str, Callable[[Checks], dict[str, Any]]]]) -> None:
            for name, check in lane:
                if asked.only is None or name.startswith(tuple(asked.only)):
                    checks.take(name, check)

        threads = [threading.Thread(target=go, args=(lane,)) for lane in LANES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        go([*ALONE, *(ASKED if asked.only else [])])
    return 0 if all(result["ok"] for result in checks.found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
