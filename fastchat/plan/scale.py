"""The tables of docs/scale.md: `python -m fastchat.plan.scale docs/scale.md` computes them again in place.

In the page, a table is the lines after `<!-- table NAME -->` that begin with `|`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fastchat.errors import EXIT_DONE, EXIT_SETTINGS, show
from fastchat.files import write_text
from fastchat.plan.architecture import Architecture
from fastchat.plan.known import architecture_of_hub_name, architecture_of_size
from fastchat.plan.run import Machine, Run
from fastchat.plan.traffic import (
    ENGINES,
    H100,
    H100_ETHERNET,
    Engine,
    Hardware,
    compute_seconds,
    hiding_tokens,
    operations_per_token,
    plan_with,
    sent_per_step,
    step_seconds,
)
from fastchat.plan.units import GIB, human
from fastchat.settings.help import asked_for_help, help_head

GPUS = (1, 8, 64, 512)
PER_HOST = 8
GPU_MEMORY = 80 * GIB
LENGTH = 4096
NAMES: dict[Engine, str] = {
    **{"ddp": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"},
    **{"fsdp": "FSDP", "hybrid": "FSDP, hybrid"},
}
METHODS = ("full", "LoRA", "QLoRA")
LONG = (32_768, 131_072)


def models() -> dict[str, Architecture]:
    """Llama-2 7B and 70B and Llama-3.1 405B, in bf16."""
    largest = architecture_of_hub_name("meta-llama/Llama-3.1-405B")
    assert largest is not None
    return {"7B": architecture_of_size("7b"), "70B": architecture_of_size("70b"), "405B": largest}


def run_with(architecture: Architecture, method: str, gpus: int, length: int = LENGTH) -> Run:
    """One packed row of `length` tokens per GPU, gradient checkpointing, bf16, rank 16."""
    machine = Machine(gpus, -(-gpus // PER_HOST), GPU_MEMORY)
    return Run(
        architecture,
        machine,
        lora=method != "full",
        q_lora=method == "QLoRA",
        lora_r=16,
        model_max_length=length,
        per_device_train_batch_size=1,
        gradient_checkpointing=True,
        packing=True,
        attention="flash_attention_2",
    )


def _rows(engines: Sequence[Engine] = ENGINES) -> Iterator[tuple[str, Architecture, str, Engine]]:
    for label, architecture in models().items():
        for method in METHODS:
            for engine in engines:
                if method != "QLoRA" or engine in ("ddp", "zero3"):
                    yield label, architecture, method, engine


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def memory() -> list[str]:
    """GPU memory by model, method, engine and number of GPUs; bold where it fits 80 GiB."""

    def cell(architecture: Architecture, method: str, engine: Engine, gpus: int) -> str:
        plan = plan_with(run_with(architecture, method, gpus), engine)
        return f"**{human(plan.total)}**" if plan.fits else human(plan.total)

    head = ["model", "method", "engine", *(f"{gpus} GPU{'s' if gpus > 1 else ''}" for gpus in GPUS)]
    return _table(head, ([m, way, NAMES[e], *(cell(a, way, e, n) for n in GPUS)] for m, a, way, e in _rows()))


def traffic() -> list[str]:
    """What a GPU sends per step of one micro step."""

    def cells(architecture: Architecture, method: str, engine: Engine) -> Iterator[str]:
        for gpus in GPUS[1:]:
            sent = sent_per_step(run_with(architecture, method, gpus), engine)
            yield _decimal(sent.inside)
            if gpus > PER_HOST:
                yield _decimal(sent.network)

    columns = ["8: NVLink"] + [f"{gpus}: {link}" for gpus in GPUS[2:] for link in ("NVLink", "network")]
    return _table(
        ["model", "method", "engine", *columns], ([m, w, NAMES[e], *cells(a, w, e)] for m, a, w, e in _rows())
    )


def hiding() -> list[str]:
    """Tokens per GPU from which the communication is hidden."""
    setups: list[tuple[str, int, Hardware]] = [
        ("8 GPUs, NVLink", 8, H100),
        ("64, 400 Gbit/s per GPU", 64, H100),
        ("512, 400 Gbit/s per GPU", 512, H100),
        ("64, 100 Gbit/s per host", 64, H100_ETHERNET),
    ]

    def cell(architecture: Architecture, method: str, engine: Engine, gpus: int, hardware: Hardware) -> str:
        tokens = round(hiding_tokens(run_with(architecture, method, gpus), engine, hardware))
        return f"{tokens:,}" if tokens <= LENGTH else f"**{tokens:,}**"

    rows = ([m, w, NAMES[e], *(cell(a, w, e, n, h) for _, n, h in setups)] for m, a, w, e in _rows())
    return _table(["model", "method", "engine", *(name for name, _, _ in setups)], rows)


def seconds() -> list[str]:
    """Predicted seconds of a step on 64 GPUs, for what fits."""

    def cells(architecture: Architecture, method: str, engine: Engine) -> Iterator[str]:
        run = run_with(architecture, method, 64)
        yield f"{compute_seconds(run, H100):.2f}"
        for hardware in (H100, H100_ETHERNET):
            for accumulation in (1, 8):
                accumulated = replace(run, gradient_accumulation_steps=accumulation)
                yield f"{step_seconds(accumulated, engine, hardware) / accumulation:.2f}"

    head = ["computation", "400 Gbit/s, A = 1", "A = 8", "100 Gbit/s per host, A = 1", "A = 8"]
    rows = ([m, w, NAMES[e], *cells(a, w, e)] for m, a, w, e in _rows() if plan_with(run_with(a, w, 64), e).fits)
    return _table(["model", "method", "engine", *head], rows)


def published() -> list[str]:
    """Tokens per second of one H100: predicted, and published by others."""
    eight = architecture_of_hub_name("meta-llama/Llama-3.1-8B-Instruct")
    assert eight is not None
    run = replace(run_with(eight, "LoRA", 1), gradient_checkpointing=False)
    predicted = round(H100.peak * H100.busy / operations_per_token(run))
    row = ["Llama-3 8B, LoRA, 4096 tokens, no checkpointing", f"{predicted:,}", "12,473 (NVIDIA NeMo AutoModel)"]
    return _table(["run on one H100", "predicted tokens/s", "published tokens/s"], iter([row]))


def long() -> list[str]:
    """GPU memory of one long row on 8 GPUs."""

    def cell(architecture: Architecture, method: str, engine: Engine, length: int) -> str:
        plan = plan_with(run_with(architecture, method, 8, length), engine)
        return f"**{human(plan.total)}**" if plan.fits else human(plan.total)

    rows = ([m, w, NAMES[e], *(cell(a, w, e, n) for n in LONG)] for m, a, w, e in _rows(("ddp", "zero3", "fsdp")))
    return _table(["model", "method", "engine", *(f"{n:,} tokens" for n in LONG)], rows)


def _decimal(size: float) -> str:
    """Bytes sent, in powers of ten as links are rated."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.{0 if size >= 100 * unit else 1}f} {name}"
    return f"{size / 1e3:.0f} kB" if size else "0"


TABLES: dict[str, Callable[[], list[str]]] = {
    table.__name__: table for table in (memory, traffic, hiding, seconds, published, long)
}


def with_tables(page: str) -> str:
    """The text of a page with its tables computed again.

    Raises KeyError for the name of a table that there is not.
    """

    def new(match: re.Match[str]) -> str:
        return "\n".join([match.group(1), *TABLES[match.group(2)]()]) + "\n"

    return re.sub(r"(?m)^(<!-- table (\w+) -->)\n(?:\|.*\n)*", new, page)


def main(argv: Sequence[str] | None = None) -> int:
    """Computes the tables of the given pages again."""
    words = list(sys.argv[1:] if argv is None else argv)
    if asked_for_help(words) is not None:
        about = "Compute the tables of docs/scale.md again, in place."
        show("\n".join(help_head("python -m fastchat.plan.scale PAGE", about, [])))
        return EXIT_DONE
    if not words:
        print("error: name the page, for example: python -m fastchat.plan.scale docs/scale.md", file=sys.stderr)
        return EXIT_SETTINGS
    for name in words:
        write_text(name, with_tables(Path(name).read_text(encoding="utf-8")))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
