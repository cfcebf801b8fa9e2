"""The largest dense model that can be trained on a machine, by scaling the architecture between known sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fastchat.plan.architecture import Architecture
from fastchat.plan.estimate import Plan, estimate
from fastchat.plan.families import architecture_from_config
from fastchat.plan.run import Run
from fastchat.plan.search import ENGINES, on_engine, slowdown

# Known Llama-like decoders: (layers, hidden, heads, key-value heads, MLP). TinyLlama 1.1B, Llama-2 7B and 13B,
# CodeLlama 34B, Llama-2 70B, Llama-3.1 405B. Sizes between them are interpolated on a logarithmic scale.
_KNOWN = (
    (22, 2048, 32, 4, 5632),
    (32, 4096, 32, 32, 11008),
    (40, 5120, 40, 40, 13824),
    (48, 8192, 64, 8, 22016),
    (80, 8192, 64, 8, 28672),
    (126, 16384, 128, 8, 53248),
)
_VOCAB = 32_000
_STEPS = 400  # points between the smallest and the largest
_HEAD_DIM = 128


@dataclass(frozen=True)
class Largest:
    """The largest model of one method, and its settings; `plan` is None if not even the smallest model fits."""

    method: str
    plan: Plan | None
    more: bool = False  # even the largest known size fits

    @property
    def billions(self) -> float:
        return 0.0 if self.plan is None else self.plan.run.architecture.parameters / 1e9


def scaled(position: float) -> Architecture:
    """The decoder at `position` in 0..len(_KNOWN)-1: integers are the known ones.

    Heads have 128 channels and share keys in groups of 8 from 34B on; widths are multiples of 128 and 256.
    """
    low = min(int(position), len(_KNOWN) - 2)
    share = position - low
    small, large = _KNOWN[low], _KNOWN[low + 1]

    def between(i: int, multiple: int) -> int:
        value = small[i] * (large[i] / small[i]) ** share
        return max(multiple, multiple * round(value / multiple))

    hidden = between(1, _HEAD_DIM)
    heads = hidden // _HEAD_DIM
    kv_heads = heads if position < 2.5 and low >= 1 else max(1, min(8, heads))
    layers, mlp = between(0, 1), between(4, 256)
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": mlp, "vocab_size": _VOCAB}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": _HEAD_DIM}
    shape = architecture_from_config(sizes | {"model_type": "llama"}, "scaled")
    return replace(shape, name=f"Llama-like, {shape.parameters / 1e9:.1f}B")


def largest_models(run: Run) -> list[Largest]:
    """For full fine-tuning, LoRA and QLoRA, with all memory-saving settings allowed and a microbatch of 1.

    `run` gives the machine, the length, the rank and the optimizer. Nothing is offloaded to unknown host memory.
    """
    base = replace(run, per_device_train_batch_size=1, lora_target_modules=None, attention=_fused(run))
    methods = (
        ("full fine-tuning", replace(base, lora=False, q_lora=False)),
        ("LoRA", replace(base, lora=True, q_lora=False)),
        ("QLoRA", replace(base, lora=True, q_lora=True)),
    )
    return [_largest(name, method) for name, method in methods]


def _fused(run: Run) -> str:
    return "sdpa" if run.attention == "eager" else run.attention


def _largest(name: str, run: Run) -> Largest:
    last = (len(_KNOWN) - 1) * _STEPS
    position = _last_true(lambda i: _best(_with(run, i)) is not None, last)
    if position is None:
        return Largest(name, None)
    return Largest(name, _best(_with(run, position)), more=position == last)


def _with(run: Run, position: int) -> Run:
    return replace(run, architecture=scaled(position / _STEPS))


def _best(run: Run) -> Plan | None:
    """The fastest configuration that fits, or None."""
    plans = [estimate(variant) for variant in _variants(run)]
    fits = [plan for plan in plans if plan.fits]
    return min(fits, key=lambda plan: slowdown(plan.run)) if fits else None


def _variants(run: Run) -> Iterator[Run]:
    for checkpointing in (False, True):
        variant = replace(run, gradient_checkpointing=checkpointing)
        yield replace(variant, zero=None)
        for engine in ENGINES:
            moved = on_engine(variant, engine)
            if run.machine.cpu_memory is not None or not (moved.zero and moved.zero.offload_optimizer):
                yield moved


def _last_true(holds: Callable[[int], bool], last: int) -> int | None:
    """The largest i in 0..last with holds(i), which is monotonic; None if holds(0) is False."""
    if not holds(0):
        return None
    good, bad = 0, last + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good
