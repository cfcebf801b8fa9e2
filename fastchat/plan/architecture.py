"""The shape of a decoder: its layers and their matrices, and the family whose code runs it.

An `Architecture` comes from a config.json (`families.py`), from a known size (`known.py`) or from interpolation between
known sizes (`largest.py`). Everything else in this package is arithmetic over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Linear:
    """One weight matrix: `name` within its layer, and its sizes. `stacked`: the number of such matrices in one 3-D
    parameter, as the experts of a mixture have them; 0 for a Linear layer, the only kind that bitsandbytes quantizes
    and that `--lora_target_modules` reaches."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    stacked: int = 0

    @property
    def leaf(self) -> str:
        """The last part of the name, as usually given in `--lora_target_modules`."""
        return self.name.rpartition(".")[2]

    @property
    def elements(self) -> int:
        return max(1, self.stacked) * self.inputs * self.outputs

    @property
    def bias_elements(self) -> int:
        return max(1, self.stacked) * self.outputs if self.bias else 0

    def lora_elements(self, rank: int) -> int:
        """Parameters of an adapter: A and B, for every matrix of a stack."""
        return max(1, self.stacked) * rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Experts:
    """The routed experts of one layer. `active`: the number that computes each token; `every`: all of them compute
    every token, and the weights of the others are zero (Llama 4)."""

    num: int
    active: int
    router: int  # elements of the router that are in no Linear layer, biases included
    stacks: tuple[Linear, ...]  # gate and up in one, down; [experts, outputs, inputs] or transposed
    fixed: int = 0  # of the router's elements, those that are never trained
    every: bool = False
    float32_router: bool = False  # it computes with float32 copies of its input and weight
    between: int = 3  # tensors of an expert's width that a row keeps between the two matrices

    @property
    def elements(self) -> int:
        return self.router + sum(stack.elements + stack.bias_elements for stack in self.stacks)

    @property
    def rows(self) -> int:
        """Rows that the experts compute per token."""
        return self.num if self.every else self.active


@dataclass(frozen=True)
class Latent:
    """The widths of multi-head latent attention (DeepSeek): queries and keys come from a compressed vector.

    `q_rank`: 0 if the queries are not compressed. A head has `nope` channels without and `rope` with rotation.
    """

    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True)
class Recurrent:
    """The widths of a gated delta net (Qwen3-Next): linear attention over a convolution of queries, keys and values."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    fused: bool  # one matrix for queries, keys, values and gate

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def own_elements(self) -> int:
        """Of the convolution, the norm, and the two vectors of decays."""
        return self.kernel * (2 * self.keys + self.values) + self.value_dim + 2 * self.value_heads


@dataclass(frozen=True)
class Layer:
    """A kind of decoder layer. `readers` are the matrices with the normed input, `inner` those with a vector made from
    it (latent attention), `out` the one back to the hidden width; `mlp` those of the dense MLP or, with `experts`, of
    the shared experts, which may be none. `own`: elements of the layer that are in no matrix or norm."""

    readers: tuple[Linear, ...]
    out: Linear
    mlp: tuple[Linear, ...]
    inner: tuple[Linear, ...] = ()
    router: tuple[Linear, ...] = ()  # if it is a Linear layer
    experts: Experts | None = None
    shared_gate: bool = False  # a matrix with one output scales the shared experts
    recurrent: bool = False
    own: int = 0
    norms: int = 0  # elements of all norms

    @cached_property
    def routing(self) -> tuple[Linear, ...]:
        """The Linear layers that route tokens to experts or weigh the shared ones."""
        gate = (Linear("mlp.shared_expert_gate", self.readers[0].inputs, 1),) if self.shared_gate else ()
        return (*self.router, *gate)

    @cached_property
    def mlp_readers(self) -> tuple[Linear, ...]:
        """The Linear layers with the normed input of the MLP."""
        return (*self.mlp[:-1], *self.routing)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """All Linear layers, which nf4 quantizes."""
        return (*self.readers, *self.inner, self.out, *self.mlp_readers, *self.mlp[-1:])

    @cached_property
    def linear_elements(self) -> int:
        return sum(linear.elements for linear in self.linears)

    @cached_property
    def bias_elements(self) -> int:
        return sum(linear.bias_elements for linear in self.linears)

    @cached_property
    def expert_elements(self) -> int:
        """Of the experts and their router."""
        return self.experts.elements if self.experts else 0

    @cached_property
    def elements(self) -> int:
        return self.linear_elements + self.bias_elements + self.expert_elements + self.own + self.norms


@dataclass(frozen=True)
class Family:
    """The differences of a model family's code from Llama's. The defaults are Llama's.

    `norm`: "llama" (float32 inside, weight applied in the input's dtype), "gemma" (weight applied in float32),
    "cohere" (the same with a mean), "layer" (torch's fused LayerNorm), "plain" (the same, without weights). `norms`: of
    hidden width, per layer; 1: MLP and attention run in parallel. `post_norm`: only the outputs are normed.
    `qk_norm`: on queries and keys, "head" (one weight per head's channel), "full" (one per channel) or "l2" (none).
    `fused_qkv`, `fused_mlp`: one matrix for q, k and v, or for gate and up. `gated`: gate and up, or one matrix up.
    `sdpa`: torch's fused attention can be used; it does not support soft-capped scores. `attention_gate`: q_proj has
    twice the outputs, and one half scales the attention's output. `sinks`: a trained number per head.
    `attention_biases`: the matrices that `attention_bias` in the config gives a bias. `prefix`: of the MLP or experts.
    `shared`: the module of the shared experts. `router_bias`: a number per expert, for scores or their correction;
    `router_fixed`: it is not trained. `float32_router`, `every_expert`, `expert_between`: see Experts.
    """

    norm: str = "llama"
    norms: int = 2
    post_norm: bool = False
    qk_norm: str | None = None
    fused_qkv: bool = False
    fused_mlp: bool = False
    gated: bool = True
    sdpa: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    attention_biases: tuple[str, ...] = ("qkv", "o")
    attention_gate: bool = False
    sinks: bool = False
    tied: bool = False
    prefix: str = "mlp"
    mlp_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    o_name: str = "o_proj"
    shared: str = "shared_experts"
    shared_gate: bool = False
    shared_always: bool = False  # of the dense MLP's width, whatever the config says
    expert_bias: bool = False
    router_name: str = ""  # of a router that is a Linear layer
    router_bias: bool = False
    router_fixed: bool = False
    float32_router: bool = False
    every_expert: bool = False
    expert_between: int = 3  # see Experts.between
    defaults: tuple[tuple[str, int], ...] = ()  # values that this family's config.json may leave out

    @property
    def norm_weights(self) -> int:
        """Weights and biases per channel of one norm."""
        return {"layer": 2, "plain": 0}.get(self.norm, 1)


@dataclass(frozen=True)
class Architecture:
    """A decoder. Sizes are numbers of channels; names with `num_` are counts. `kinds` are its kinds of layers and
    `order` has the kind of every layer, as an index."""

    name: str
    model_type: str
    family: Family
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    kinds: tuple[Layer, ...]
    order: tuple[int, ...]
    latent: Latent | None = None
    recurrent: Recurrent | None = None
    known: bool = True  # False: of another family's code, so its matrices may have other names
    dtype: str | None = None  # that of the checkpoint; None if there is no checkpoint
    packed: str | None = None  # the format of a checkpoint whose experts are stored in fewer bits
    max_positions: int = 0
    head_bias: bool = False
    residual_dropout: bool = False  # outputs of attention and MLP have a dropout of their own
    softcap: bool = False  # the logits go through tanh (Gemma 2)
    other: int = 0  # elements in the weight files that belong to no decoder layer, such as a vision tower
    notes: tuple[str, ...] = field(default=())

    @property
    def num_layers(self) -> int:
        return len(self.order)

    @property
    def queries(self) -> int:
        """Channels of the queries."""
        return self.num_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Channels of the keys, and of the values."""
        return self.num_kv_heads * self.head_dim

    @cached_property
    def kind_counts(self) -> tuple[tuple[Layer, int], ...]:
        """(kind of layer, number of such layers)"""
        return tuple((kind, self.order.count(index)) for index, kind in enumerate(self.kinds))

    @cached_property
    def stack_counts(self) -> tuple[tuple[Linear, int], ...]:
        """(3-D parameter of experts, number of layers that have it)"""
        return tuple((s, n) for kind, n in self.kind_counts if kind.experts for s in kind.experts.stacks)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """The different Linear layers of all kinds of decoder layers."""
        return tuple(dict.fromkeys(linear for kind in self.kinds for linear in kind.linears))

    @cached_property
    def stacks(self) -> tuple[Linear, ...]:
        """The different 3-D parameters of experts, which `--lora_target_parameters` reaches."""
        return tuple(dict.fromkeys(stack for stack, _ in self.stack_counts))

    @cached_property
    def linear_elements(self) -> int:
        """Weights of the Linear layers in all layers, which nf4 quantizes."""
        return sum(kind.linear_elements * n for kind, n in self.kind_counts)

    @cached_property
    def expert_elements(self) -> int:
        """Weights of all experts with their routers, which are no Linear layers."""
        return sum(kind.expert_elements * n for kind, n in self.kind_counts)

    @cached_property
    def norm_elements(self) -> int:
        return sum(kind.norms * n for kind, n in self.kind_counts) + self.hidden * self.family.norm_weights

    @cached_property
    def bias_elements(self) -> int:
        """Biases of the Linear layers in all layers."""
        return sum(kind.bias_elements * n for kind, n in self.kind_counts)

    @property
    def embedding_elements(self) -> int:
        return self.vocab * self.hidden

    @property
    def head_elements(self) -> int:
        """The output matrix, if it is not tied to the embedding, and its bias."""
        return (0 if self.tied else self.vocab * self.hidden) + (self.vocab if self.head_bias else 0)

    @cached_property
    def unquantised_elements(self) -> int:
        """Everything that nf4 does not quantize: embeddings, head, experts, norms, biases, other."""
        tables = self.embedding_elements + self.head_elements + sum(kind.own * n for kind, n in self.kind_counts)
        return tables + self.expert_elements + self.norm_elements + self.bias_elements + self.other

    @property
    def parameters(self) -> int:
        return self.linear_elements + self.unquantised_elements
