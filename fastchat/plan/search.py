"""Search for the settings that fit and slow training down least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fastchat.plan.estimate import Plan, estimate
from fastchat.plan.report import describe, why_not
from fastchat.plan.run import Run
from fastchat.plan.units import human
from fastchat.plan.zero import read_zero


@dataclass(frozen=True)
class Engine:
    """A DeepSpeed configuration of the package (one file for LoRA, one for full fine-tuning), and the part of it that
    affects memory (a test compares them)."""

    lora_file: str
    full_file: str
    zero: dict[str, Any]

    def path(self, lora: bool) -> str:
        """The file name, which --deepspeed accepts in any folder."""
        return self.lora_file if lora else self.full_file

    def config(self, lora: bool) -> dict[str, Any]:
        """Full fine-tuning accumulates gradients in float32, because 16 bits would lose small ones."""
        return {"zero_optimization": self.zero} | ({} if lora else {"data_types": {"grad_accum_dtype": "fp32"}})


def _zero(stage: int, *offloaded: str) -> dict[str, Any]:
    common = {"stage": stage, "overlap_comm": True, "reduce_bucket_size": "auto"}
    auto = ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold") if stage == 3 else ()
    blocks = {f"offload_{what}": {"device": "cpu", "pin_memory": True} for what in offloaded}
    return {**common, **dict.fromkeys(auto, "auto"), **blocks}


_NAME = "deepspeed_config_"
ENGINES = (  # each is slower than the one before it
    Engine(_NAME + "lora_s2.json", _NAME + "s2.json", _zero(2)),
    Engine(_NAME + "lora_s2_offload.json", _NAME + "s2_offload.json", _zero(2, "optimizer")),
    Engine(_NAME + "lora_s3_no_offload.json", _NAME + "s3.json", _zero(3)),
    Engine(_NAME + "lora_s3.json", _NAME + "s3_offload.json", _zero(3, "optimizer", "param")),
)


def on_engine(run: Run, engine: Engine | None) -> Run:
    """`run` with a DeepSpeed configuration; None: without DeepSpeed."""
    if engine is None:
        return replace(run, zero=None, fsdp=None)
    zero = replace(read_zero(engine.config(run.lora), run.architecture.hidden), path=engine.path(run.lora))
    return replace(run, zero=zero, fsdp=None)


def engines_for(run: Run) -> tuple[Engine | None, ...]:
    """The possible engines of a run, fastest first.

    With one GPU there is nothing to partition, so an adapter is trained without DeepSpeed. Full fine-tuning still uses
    it: DeepSpeed keeps float32 master weights, without which small updates are lost to rounding. With several GPUs,
    ZeRO-2 communicates as much as DDP.
    """
    return (None, *ENGINES) if run.lora and run.machine.gpus == 1 else ENGINES


def place(run: Run) -> int | None:
    """The index of the run's engine in `engines_for`; None if it is not one of them."""
    if run.fsdp is not None:
        return None
    zeros = [on_engine(run, engine).zero for engine in engines_for(run)]
    return zeros.index(run.zero) if run.zero in zeros else None


# ---- how much slower ----

# Fixed costs of one pass over the weights, in units of the time per token: a token needs 2 FLOP per weight, at about
# 400 TFLOP/s. Rough figures of A100 and H100 nodes; they only determine the order of the choices that fit.
_LAUNCH = 100  # kernels that are too small to fill the GPU
_DEQUANTISE = 450  # nf4: half a byte read, two bytes written and read again per weight, at 2 TB/s
_GATHER = 700  # ZeRO-3: two bytes per weight from the other GPUs, at 300 GB/s, half of it overlapped
_HOOKS = (0, 10, 10, 60)  # per ZeRO stage: copies into its buckets, and Python hooks of every layer in ZeRO-3
_FROM_HOST = 16_000  # offloaded weights: two bytes per weight over PCIe, at 25 GB/s, divided among the GPUs
_HOST_STEP = 1.02  # an adapter's optimizer on the host: a small step
# The optimizer of all weights on the host, per step: 28 bytes per weight at 110 GB/s, divided among the hosts; and
# gradients and new weights over PCIe, six bytes, divided among the GPUs.
_HOST_ADAM = 50_000
_HOST_COPY = 48_000


def slowdown(run: Run) -> float:
    """Time per token, relative to LoRA without memory-saving settings. A rough figure for sorting."""
    passes = (2 if run.lora else 3) + run.checkpointed_layers / run.architecture.num_layers
    extra = _LAUNCH + (_DEQUANTISE if run.q_lora else 0)
    step, host = 1.0, 0.0
    n = run.machine.gpus
    if run.fsdp is not None:
        extra += _HOOKS[3] + _GATHER * (n - 1) / n * (1 if run.reshards else 0.5)
    if run.zero is not None:
        extra += _HOOKS[run.zero.stage]
        extra += _GATHER * (n - 1) / n if run.zero.stage == 3 else 0
        extra += _FROM_HOST / n if run.zero.offload_params else 0
        if run.zero.offload_optimizer and run.lora:
            step = _HOST_STEP
        elif run.zero.offload_optimizer:
            host = (_HOST_ADAM / run.machine.hosts + _HOST_COPY / n) / run.gradient_accumulation_steps
    return (step * passes * (run.tokens + extra) + host) / (2 * run.tokens)


# ---- what could be tried ----


def keep_global_batch(run: Run, microbatch: int) -> tuple[int, int]:
    """(microbatch, accumulation) with the run's product, and a microbatch of at most `microbatch`.

    >>> keep_global_batch(run_of_16_times_2, 12)      # doctest: +SKIP
    (8, 4)
    """
    product = run.per_device_train_batch_size * run.gradient_accumulation_steps
    best = max(n for n in range(1, max(1, min(microbatch, product)) + 1) if product % n == 0)
    return best, product // best


def batches(run: Run) -> list[tuple[int, int]]:
    """Every (microbatch, accumulation) with the run's product, largest microbatch first."""
    product = run.per_device_train_batch_size * run.gradient_accumulation_steps
    return [(n, product // n) for n in range(product, 0, -1) if product % n == 0]


def with_batch(run: Run, batch: tuple[int, int]) -> Run:
    return replace(run, per_device_train_batch_size=batch[0], gradient_accumulation_steps=batch[1])


def choices(run: Run) -> Iterator[Run]:
    """All combinations of engine, quantization, checkpointing and microbatch with the run's global batch.

    Without an adapter nothing is quantized.
    """
    for engine in engines_for(run):
        for q_lora in (False, True) if run.lora else (False,):
            for checkpointing in (False, True):
                variant = on_engine(replace(run, q_lora=q_lora, gradient_checkpointing=checkpointing), engine)
                for batch in batches(run):
                    yield with_batch(variant, batch)


_WORTHWHILE = 0.97  # a slower choice must save at least this much


@dataclass(frozen=True)
class Choice:
    """A configuration with its plan."""

    plan: Plan
    slowdown: float

    @property
    def run(self) -> Run:
        return self.plan.run


def fitting(run: Run) -> list[Choice]:
    """The choices that fit, least slowdown first; for each engine, quantization and checkpointing the best microbatch.

    A choice that is slower than another one is included only if it needs less memory.
    """
    best: dict[tuple[Any, ...], Choice] = {}
    for variant in choices(run):
        plan = estimate(variant)
        key = (variant.zero, variant.q_lora, variant.gradient_checkpointing)
        found = Choice(plan, slowdown(variant))
        if plan.fits and (key not in best or found.slowdown < best[key].slowdown):
            best[key] = found
    useful: list[Choice] = []
    for choice in sorted(best.values(), key=lambda choice: choice.slowdown):  # on ties, the simpler engine is first
        if all(choice.plan.total < _WORTHWHILE * other.plan.total for other in useful):
            useful.append(choice)
    return useful


def neighbours(run: Run) -> Iterator[tuple[str, Run]]:
    """(the change, the changed run) for every configuration that differs in one setting."""
    if run.gradient_checkpointing:
        yield "without checkpointing", replace(run, gradient_checkpointing=False)
    else:
        yield "with checkpointing", replace(run, gradient_checkpointing=True)
    if run.lora:
        yield ("LoRA instead of QLoRA" if run.q_lora else "QLoRA instead of LoRA"), replace(run, q_lora=not run.q_lora)
    engines, at = engines_for(run), place(run)
    if at is not None:
        for other in (at - 1, at + 1):
            if 0 <= other < len(engines):
                variant = on_engine(run, engines[other])
                yield describe(variant).split(", ")[1], variant
    sizes = batches(run)
    here = sizes.index((run.per_device_train_batch_size, run.gradient_accumulation_steps))
    for other in (here - 1, here + 1):
        if 0 <= other < len(sizes):
            micro, accumulation = sizes[other]
            yield f"microbatch {micro} x accumulation {accumulation}", with_batch(run, sizes[other])


def rejected(best: Choice) -> list[tuple[str, str]]:
    """(neighbour of the best choice, why it was not chosen)."""
    reasons = []
    for change, run in neighbours(best.run):
        plan = estimate(run)
        ratio = slowdown(run) / best.slowdown
        if not plan.fits:
            reasons.append((change, f"does not fit: {why_not(plan)}"))
        else:
            slower = f"about {ratio:.2f}x as long" if ratio >= 1.005 else "no faster"
            reasons.append((change, f"fits ({human(plan.total)}), {slower}"))
    return reasons
