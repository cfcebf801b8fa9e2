"""One configuration to plan: the model's shape, the training settings that affect memory, and the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from fastchat.plan.architecture import Architecture, Layer, Linear
from fastchat.plan.targets import Copies, adapted_by_layer, copied_modules, tables_of
from fastchat.plan.zero import Zero
from fastchat.settings.engines import FsdpOptions
from fastchat.settings.targets import matches

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
    lora_target_modules: tuple[str, ...] | None = None  # None: the default
    lora_target_parameters: tuple[str, ...] = ()  # of the experts' 3-D parameters
    lora_layers_to_transform: tuple[int, ...] = ()  # empty: all
    lora_modules_to_save: tuple[str, ...] = ()
    trainable_tokens: int = 0
    use_dora: bool = False
    subtracts_start: bool = False  # the adapter starts from parts of the base, kept in a second, frozen adapter
    lora_bias: str = "none"
    q_lora: bool = False
    dtype: str = "auto"
    bf16: bool = True
    fp16: bool = False
    zero: Zero | None = None  # None: no DeepSpeed
    fsdp: FsdpOptions | None = None  # None: no FSDP
    model_max_length: int = 512
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool | int = False  # True: all decoder layers; a number: the first ones
    packing: bool = False
    attention: str = "sdpa"
    optim: str = "adamw_torch"
    chunked_head: bool = True  # logits are computed in chunks of supervised tokens

    @property
    def tokens(self) -> int:
        """Tokens of one microbatch, padding included."""
        return self.per_device_train_batch_size * self.model_max_length

    @cached_property
    def checkpointed_layers(self) -> int:
        """Decoder layers that are recomputed in the backward pass, the first ones."""
        asked, layers = self.gradient_checkpointing, self.architecture.num_layers
        return layers if asked is True else min(int(asked), layers)

    # ---- precision: bytes per number ----

    @cached_property
    def half(self) -> bool:
        """Whether matrix products are in 16 bits, even if the weights are wider."""
        asked = self.bf16 or self.fp16
        return asked if self.zero is None or self.zero.half is None else self.zero.half

    @cached_property
    def autocast(self) -> bool:
        """Whether torch.autocast is used: 16 bits without DeepSpeed and FSDP, which cast the model instead."""
        return self.half and self.zero is None and self.fsdp is None

    @property
    def whole(self) -> bool:
        """Whether every process has whole weights, gradients and optimizer states: no DeepSpeed, no FSDP."""
        return self.zero is None and self.fsdp is None

    @property
    def reshards(self) -> bool:
        """Whether FSDP gathers a layer for each pass, instead of keeping it from the forward to the backward pass."""
        return self.fsdp is None or self.fsdp.reshard_after_forward

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
        if self.fsdp is not None and self.half:
            return 2
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
        """Bytes per adapter weight: float32, except that DeepSpeed and FSDP make 16-bit working copies."""
        return 2 if self.half and not self.autocast else 4

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
    def groups(self) -> tuple[Group, ...]:
        """All layers, in order of their first one. Raises SettingsError for a target that matches nothing."""
        return self.groups_from(0)

    def groups_from(self, start: int) -> tuple[Group, ...]:
        """The same of layer number `start` (0-based) and those after it."""
        a = self.architecture
        mine = self._by_layer
        first = next((index for index, adapted in enumerate(mine) if adapted), a.num_layers)
        # Checkpointing makes the embedding's output have a gradient, and so does training the embedding.
        always = not self.lora or self.gradient_checkpointing or self.trains_embedding
        counts: dict[tuple[int, tuple[Linear, ...], bool], int] = {}
        for index, adapted in list(enumerate(mine))[start:]:
            key = a.order[index], adapted, always or index > first
            counts[key] = counts.get(key, 0) + 1
        return tuple(Group(a.kinds[kind], count, adapted, live) for (kind, adapted, live), count in counts.items())

    @property
    def _by_layer(self) -> tuple[tuple[Linear, ...], ...]:
        if not self.lora:
            return ((),) * self.architecture.num_layers
        parameters, layers = self.lora_target_parameters, self.lora_layers_to_transform
        return adapted_by_layer(self.architecture, self.lora_target_modules, parameters, layers)

    @cached_property
    def adapted(self) -> tuple[Linear, ...]:
        """The different adapted matrices."""
        return tuple(dict.fromkeys(linear for group in self.groups for linear in group.adapted))

    @cached_property
    def adapted_tables(self) -> tuple[Linear, ...]:
        """Embedding and output matrix, if a target names them."""
        asked = self.lora_target_modules or () if self.lora else ()
        tables = tables_of(self.architecture)
        return tuple(table for table in tables if any(matches(name, table.name) for name in asked))

    @cached_property
    def adapters(self) -> tuple[tuple[Linear, int], ...]:
        """(matrix, the number of layers in which it has an adapter), embedding and output matrix included."""
        counts: dict[Linear, int] = dict.fromkeys(self.adapted_tables, 1)
        for group in self.groups:
            for linear in group.adapted:
                counts[linear] = counts.get(linear, 0) + group.count
        return tuple(counts.items())

    @cached_property
    def copied(self) -> Copies:
        """The modules of `--lora_modules_to_save`."""
        return copied_modules(self.architecture, self.lora_modules_to_save) if self.lora else Copies()

    @property
    def trains_embedding(self) -> bool:
        """Whether the embedding's output has a gradient because rows of it, or all, are trained."""
        tables = {table.name for table in self.adapted_tables} | self.copied.tables
        return "embed_tokens" in tables or bool(self.trainable_tokens)

    @property
    def trained_rows(self) -> int:
        """Trained rows of the embedding and, unless it is tied, of the output matrix."""
        return self.trainable_tokens * (1 if self.architecture.tied else 2) if self.lora else 0

    @cached_property
    def trained(self) -> int:
        """Number of trained parameters."""
        a = self.architecture
        if not self.lora:
            return a.parameters - a.other - sum(kind.experts.fixed * n for kind, n in a.kind_counts if kind.experts)
        more = self.copied.elements + self.trained_rows * a.hidden + self._trained_biases
        return self.low_rank + more

    @cached_property
    def low_rank(self) -> int:
        """Elements of the matrices A and B, and the lengths of rows that DoRA trains."""
        lengths = sum(linear.outputs * n for linear, n in self.adapters) if self.use_dora else 0
        return sum(linear.lora_elements(self.lora_r) * n for linear, n in self.adapters) + lengths

    @property
    def _trained_biases(self) -> int:
        if self.lora_bias == "all":
            return self.architecture.bias_elements
        if self.lora_bias == "lora_only":
            return sum(linear.bias_elements * n for linear, n in self.adapters)
        return 0

    @property
    def frozen_experts(self) -> int:
        """Elements of the experts' matrices without an adapter."""
        total = sum(stack.elements * n for stack, n in self.architecture.stack_counts)
        return total - sum(linear.elements * n for linear, n in self.adapters if linear.stacked) if self.lora else 0
