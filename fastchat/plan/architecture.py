"""The shape of a dense decoder: its matrices, and the family whose code runs it.

An `Architecture` comes from a config.json (`families.py`), from a known size (`known.py`) or from interpolation between
known sizes (`largest.py`). Everything else in this package is arithmetic over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Linear:
    """One weight matrix: `name` within its layer, and its sizes."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def leaf(self) -> str:
        """The last part of the name, as usually given in `--lora_target_modules`."""
        return self.name.rpartition(".")[2]

    @property
    def elements(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Family:
    """The differences of a model family's code from Llama's. The defaults are Llama's.

    `norm`: "llama" (float32 inside, weight applied in the input's dtype), "gemma" (weight applied in float32),
    "cohere" (the same with a mean), "layer" (torch's fused LayerNorm). `norms`: of hidden width, per layer.
    `qk_norm`: on queries and keys, "head" (one weight per head's channel) or "full" (one per channel).
    `fused`: one matrix for q, k and v, and one for gate and up. `gated`: gate and up, or one matrix up. `sdpa`: torch's
    fused attention can be used; it does not support soft-capped scores.
    """

    norm: str = "llama"
    norms: int = 2
    qk_norm: str | None = None
    fused: bool = False
    gated: bool = True
    sdpa: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    mlp_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    defaults: tuple[tuple[str, int], ...] = ()  # values that this family's config.json may leave out


@dataclass(frozen=True)
class Architecture:
    """A dense decoder. Sizes are numbers of channels; names with `num_` are counts."""

    name: str
    family: Family
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    dtype: str | None = None  # that of the checkpoint; None if there is no checkpoint
    max_positions: int = 0
    softcap: bool = False  # the logits go through tanh (Gemma 2)
    other: int = 0  # elements in the weight files that belong to no decoder layer, such as a vision tower
    notes: tuple[str, ...] = field(default=())

    @property
    def queries(self) -> int:
        """Channels of the queries, and of the attention's output."""
        return self.num_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Channels of the keys, and of the values."""
        return self.num_kv_heads * self.head_dim

    @cached_property
    def attention_linears(self) -> tuple[Linear, ...]:
        """The matrices with the layer's normed input, then `o_proj`."""
        f = self.family
        last = Linear("self_attn.o_proj", self.queries, self.hidden, f.o_bias)
        if f.fused:
            return Linear("self_attn.qkv_proj", self.hidden, self.queries + 2 * self.keys, f.qkv_bias), last
        widths = (("q_proj", self.queries), ("k_proj", self.keys), ("v_proj", self.keys))
        return (*(Linear(f"self_attn.{n}", self.hidden, w, f.qkv_bias) for n, w in widths), last)

    @cached_property
    def mlp_linears(self) -> tuple[Linear, ...]:
        """The matrices with the second normed input, then the one back to the hidden width."""
        f, names = self.family, self.family.mlp_names
        last = Linear(f"mlp.{names[-1]}", self.intermediate, self.hidden, f.mlp_bias)
        if f.fused:
            return Linear("mlp.gate_up_proj", self.hidden, 2 * self.intermediate, f.mlp_bias), last
        return (*(Linear(f"mlp.{n}", self.hidden, self.intermediate, f.mlp_bias) for n in names[:-1]), last)

    @cached_property
    def layer_linears(self) -> tuple[Linear, ...]:
        return self.attention_linears + self.mlp_linears

    @cached_property
    def linear_elements(self) -> int:
        """Weights of the matrices in all layers, which nf4 quantizes."""
        return self.num_layers * sum(linear.elements for linear in self.layer_linears)

    @cached_property
    def norm_elements(self) -> int:
        per_layer = self.family.norms * self.hidden * (2 if self._norm_bias else 1)
        if self.family.qk_norm == "head":
            per_layer += 2 * self.head_dim
        elif self.family.qk_norm == "full":
            per_layer += self.queries + self.keys
        return self.num_layers * per_layer + self.hidden * (2 if self._norm_bias else 1)

    @cached_property
    def bias_elements(self) -> int:
        """Biases of the matrices in all layers."""
        return self.num_layers * sum(linear.outputs for linear in self.layer_linears if linear.bias)

    @property
    def embedding_elements(self) -> int:
        return self.vocab * self.hidden

    @property
    def head_elements(self) -> int:
        """The output matrix, if it is not tied to the embedding."""
        return 0 if self.tied else self.vocab * self.hidden

    @cached_property
    def unquantised_elements(self) -> int:
        """Everything that nf4 does not quantize: embeddings, head, norms, biases, other."""
        tables = self.embedding_elements + self.head_elements
        return tables + self.norm_elements + self.bias_elements + self.other

    @property
    def parameters(self) -> int:
        return self.linear_elements + self.unquantised_elements

    @property
    def _norm_bias(self) -> bool:
        return self.family.norm == "layer"
