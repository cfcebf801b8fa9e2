"""One configuration to plan: the model's shape, the training settings that affect memory, and the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from fastchat.errors import SettingsError, nearest
from fastchat.plan.architecture import Architecture, Layer, Linear
from fastchat.plan.zero import Zero
from fastchat.settings.arguments import LORA_TARGETS as DEFAULT_TARGETS

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class Machine:
    """The machine. Memory in bytes, per GPU and per host; None if unknown."""

    gpus: int = 1
    hosts: int = 1
    gpu_memory: int | None = None
    cpu_memory: int | None = None
    gpu_name: str = ""  # only for GPUs detected on this machine
    on_cpu: bool = False  # training on the CPU: `gpus` counts processes, and they share the host's memory

    @property
    def gpus_per_host(self) -> int:
        return -(-self.gpus // self.hosts)

    @property
    def limit_known(self) -> bool:
        """Whether the memory is known, so that a plan can say if it fits."""
        return (self.cpu_memory if self.on_cpu else self.gpu_memory) is not None


@dataclass(frozen=True)
class Group:
    """Layers of one kind that are trained in the same way. `adapted`: those of their matrices that have an adapter.
    `differentiated`: their input has a gradient, because something before them is trained."""

    layer: Layer
    count: int
    adapted: tuple[Linear, ...]
    differentiated: bool


@dataclass(frozen=True)
class Run:
    """A training run. Names and defaults are those of training, except that bf16 is on."""

    architecture: Architecture
    machine: Machine = field(default_factory=Machine)
    lora: bool = True  # False: full fine-tuning
    lora_r: int = 8
    lora_dropout: float = 0.05
    lora_target_modules: tuple[str, ...] | None = None  # None: the existing ones of the default seven
    lora_target_parameters: tuple[str, ...] = ()  # of the experts' 3-D parameters
    lora_bias: str = "none"
    q_lora: bool = False
    dtype: str = "auto"
    bf16: bool = True
    fp16: bool = False
    zero: Zero | None = None  # None: no DeepSpeed
    model_max_length: int = 512
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    packing: bool = False
    attention: str = "sdpa"
    optim: str = "adamw_torch"
    chunked_head: bool = True  # logits are computed in chunks of supervised tokens

    @property
    def tokens(self) -> int:
        """Tokens of one microbatch, padding included."""
        return self.per_device_train_batch_size * self.model_max_length

    # ---- precision: bytes per number ----

    @cached_property
    def half(self) -> bool:
        """Whether matrix products are in 16 bits, even if the weights are wider."""
        asked = self.bf16 or self.fp16
        return asked if self.zero is None or self.zero.half is None else self.zero.half

    @cached_property
    def autocast(self) -> bool:
        """Whether torch.autocast is used: 16 bits without DeepSpeed, which casts the model instead."""
        return self.half and self.zero is None

    @cached_property
    def stored_dtype(self) -> str:
        """The dtype of the loaded base weights."""
        if self.dtype != "auto":
            return self.dtype
        if not self.lora and self.fp16 and self.zero is None:
            return "float32"  # float16 gradients are scaled, which needs float32 weights
        return self.architecture.dtype or ("float16" if self.fp16 else "bfloat16" if self.half else "float32")

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes per unquantized base weight during training, and per number of the residual stream."""
        if self.zero is not None:
            return 2 if self.half else 4
        return _BYTES[self.stored_dtype]

    @cached_property
    def compute_bytes(self) -> int:
        """Bytes per number in matrix products."""
        return 2 if self.half else self.weight_bytes

    @cached_property
    def casts_weights(self) -> bool:
        """Whether autocast copies every weight, because it computes in another dtype."""
        if not self.autocast:
            return False
        return self.stored_dtype != ("float16" if self.fp16 else "bfloat16")

    @cached_property
    def adapter_bytes(self) -> int:
        """Bytes per adapter weight: float32, except that DeepSpeed makes 16-bit working copies."""
        return 2 if self.zero is not None and self.half else 4

    @cached_property
    def dropout_mask_bytes(self) -> int:
        """Bytes of the mask per number: the GPU kernel keeps a byte, a CPU keeps the factor in the input's dtype."""
        if not self.machine.on_cpu:
            return 1
        return self.compute_bytes if self.autocast and self.q_lora else self.adapter_bytes

    @property
    def trained_bytes(self) -> int:
        """Bytes per trained weight."""
        return self.adapter_bytes if self.lora else self.weight_bytes

    # ---- what is trained ----

    @cached_property
    def adapted(self) -> tuple[Linear, ...]:
        """The different adapted matrices. Raises SettingsError for a target that matches nothing."""
        return (*self._adapted_linears, *self._adapted_stacks) if self.lora else ()

    @cached_property
    def _adapted_linears(self) -> tuple[Linear, ...]:
        linears = self.architecture.linears
        existing = [linear.name for linear in (*linears, *self._tables)]
        asked = self.lora_target_modules or DEFAULT_TARGETS
        missing = [name for name in asked if not any(_matches(name, full) for full in existing)]
        if len(missing) == len(asked) or (missing and self.lora_target_modules):
            raise _no_match("lora_target_modules", missing, existing)
        return tuple(linear for linear in linears if any(_matches(name, linear.name) for name in asked))

    @cached_property
    def _adapted_stacks(self) -> tuple[Linear, ...]:
        stacks, asked = self.architecture.stacks, self.lora_target_parameters
        existing = [stack.name for stack in stacks]
        if missing := [name for name in asked if not any(_matches(name, full) for full in existing)]:
            raise _no_match("lora_target_parameters", missing, existing)
        return tuple(stack for stack in stacks if any(_matches(name, stack.name) for name in asked))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All layers, in order of their first one."""
        a = self.architecture
        mine = [self._adapted_in(index) for index in range(a.num_layers)]
        first = next((index for index, adapted in enumerate(mine) if adapted), a.num_layers)
        always = not self.lora or self.gradient_checkpointing  # which makes the embedding's output have a gradient
        counts: dict[tuple[int, tuple[Linear, ...], bool], int] = {}
        for index, adapted in enumerate(mine):
            key = a.order[index], adapted, always or index > first
            counts[key] = counts.get(key, 0) + 1
        return tuple(Group(a.kinds[kind], count, adapted, live) for (kind, adapted, live), count in counts.items())

    def _adapted_in(self, index: int) -> tuple[Linear, ...]:
        layer = self.architecture.layers[index]
        stacks = layer.experts.stacks if layer.experts else ()
        return tuple(linear for linear in (*layer.linears, *stacks) if linear in self.adapted)

    @cached_property
    def adapted_tables(self) -> tuple[Linear, ...]:
        """Embedding and output matrix, if a target names them."""
        asked = self.lora_target_modules or ()
        return tuple(table for table in self._tables if any(_matches(name, table.name) for name in asked))

    @property
    def _tables(self) -> tuple[Linear, Linear]:
        a = self.architecture
        return Linear("embed_tokens", a.vocab, a.hidden), Linear("lm_head", a.hidden, a.vocab)

    @cached_property
    def trained(self) -> int:
        """Number of trained parameters."""
        a = self.architecture
        if not self.lora:
            return a.parameters - a.other - sum(layer.experts.fixed for layer in a.layers if layer.experts)
        return sum(linear.lora_elements(self.lora_r) * n for linear, n in self.adapters) + self._trained_biases

    @cached_property
    def adapters(self) -> tuple[tuple[Linear, int], ...]:
        """(matrix, the number of layers in which it has an adapter), embedding and output matrix included."""
        counts: dict[Linear, int] = dict.fromkeys(self.adapted_tables, 1)
        for group in self.groups:
            for linear in group.adapted:
                counts[linear] = counts.get(linear, 0) + group.count
        return tuple(counts.items())

    @property
    def _trained_biases(self) -> int:
        if self.lora_bias == "all":
            return self.architecture.bias_elements
        if self.lora_bias == "lora_only":
            return sum(linear.bias_elements * n for linear, n in self.adapters)
        return 0

    @property
    def frozen_experts(self) -> int:
        """Elements of experts without an adapter."""
        a = self.architecture
        return sum(
            stack.elements for layer in a.layers if layer.experts for stack in layer.experts.stacks
            if self.lora and stack not in self.adapted
        )


def _matches(target: str, name: str) -> bool:
    return name == target or name.endswith("." + target)


def _no_match(flag: str, missing: list[str], existing: list[str]) -> SettingsError:
    if not existing:
        return SettingsError(f"--{flag}: this model has no fused experts, so {', '.join(missing)} match nothing")
    leaves = sorted({name.rpartition(".")[2] for name in existing})
    close = nearest(missing[0].rpartition(".")[2], leaves, n=1)
    return SettingsError(
        f"--{flag}: {', '.join(missing)} match nothing in this model, which has "
        f"{', '.join(leaves)}" + (f"; did you mean {close[0]}?" if close else "")
    )
