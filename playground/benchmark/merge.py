"""What merging an adapter costs: CPU seconds and peak memory of the whole command, and of peft's own merge.

    python playground/benchmark/merge.py                                   # a made model of 1 GB in bf16
    python playground/benchmark/merge.py --dtype float32 --layers 3 --json merge.json

Both run in processes of their own, taking turns, `--repeat` times. The tensors in their files are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
PeftModel.from_pretrained(base, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""
# The children of a process are measured together, so each command has a process around it.
MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
sys.exit(done.returncode)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", help="of the base's files")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scratch", help="folder for models and results (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fschat-benchmark-", dir=args.scratch) as scratch:
        found = measure(Path(scratch), args)
    report(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def report(found: dict[str, Any]) -> None:
    """Prints a line for each. bench.py reads them."""
    for name, one in found.items():
        seconds, peak = one["cpu_s"], one["peak_bytes"]
        print(
            f"{name:<6} {median(seconds):6.1f} CPU s ({min(seconds):.1f}-{max(seconds):.1f})  "
            f"peak {max(peak) / 1e9:.2f} GB"
        )


def measure(scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds and peak bytes of every repetition, by who merges."""
    base, adapter = scratch / "base", scratch / "adapter"
    made = [sys.executable, __file__, "--make", str(base), str(adapter), json.dumps(vars(args) | {"json": None})]
    subprocess.run(made, check=True)  # so that this process stays small: the children begin as copies of it
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    print(f"base: {size / 1e9:.2f} GB in {args.dtype}", flush=True)
    flags = ["--lora-path", str(adapter), "--base-model-path", str(base)]
    commands = {
        "here": lambda out: [sys.executable, "-m", "fastchat.model.apply_lora", *flags, "--target-model-path", out],
        "peft": lambda out: [sys.executable, "-c", PEFT, str(base), str(adapter), out],
    }
    found: dict[str, Any] = {name: {"cpu_s": [], "peak_bytes": []} for name in commands}
    for turn in range(args.repeat):
        for name, command in commands.items():
            out = scratch / f"{name}{turn}"
            seconds, peak = run(command(str(out)))
            found[name]["cpu_s"].append(round(seconds, 2))
            found[name]["peak_bytes"].append(peak)
        if not turn:
            subprocess.run(
                [sys.executable, __file__, "--compare", *(str(scratch / f"{n}0") for n in commands)], check=True
            )
        for name in commands:
            shutil.rmtree(scratch / f"{name}{turn}")
    return found


def run(words: list[str]) -> tuple[float, int]:
    """(CPU seconds, peak resident bytes) of a command in one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def make(base: Path, adapter: Path, sizes: dict[str, Any]) -> None:
    """A Llama with random weights and tokenizer, and a LoRA adapter of rank 16 for all of its linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from playground.benchmark.made import make_model

    hidden = sizes["hidden"]
    shape = {"hidden_size": hidden, "intermediate_size": hidden * 11 // 4, "num_hidden_layers": sizes["layers"]}
    shape |= {"num_attention_heads": hidden // 64, "vocab_size": sizes["vocab"], "max_position_embeddings": 2048}
    make_model(base, AutoConfig.for_model("llama", **shape), sizes["dtype"], "cpu")
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(adapter)


def compare(one: Path, other: Path) -> None:
    """Ends with a message unless the files of two folders have the same tensors up to one rounding."""
    import torch
    from safetensors.torch import load_file

    def tensors(folder: Path) -> dict[str, Any]:
        return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}

    here, there = tensors(one), tensors(other)
    if here.keys() != there.keys():
        raise SystemExit(f"other tensors: {sorted(here.keys() ^ there.keys())[:4]}")
    for name, tensor in here.items():
        if tensor.dtype != there[name].dtype or not torch.allclose(tensor.float(), there[name].float(), 1e-2, 1e-2):
            raise SystemExit(f"{name} differs: there is nothing to compare")
    print(f"{len(here)} tensors agree", flush=True)


if __name__ == "__main__":
    if "--make" in sys.argv:
        make(Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
    elif "--compare" in sys.argv:
        compare(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
