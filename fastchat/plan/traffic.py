"""What the GPUs of a run send to each other in a step, over the links inside a host and over the network, and how long
that takes compared with the computation.

A collective over N GPUs sends (N - 1) / N of its size from every GPU, an all-reduce twice that (NCCL's rings). With G
GPUs per host, one of G hops of every ring is between hosts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from fastchat.plan.architecture import Layer
from fastchat.plan.estimate import Plan, estimate
from fastchat.plan.run import Run
from fastchat.plan.zero import read_zero
from fastchat.settings.engines import FsdpOptions

Engine = Literal["ddp", "zero1", "zero2", "zero3", "fsdp", "hybrid"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


@dataclass(frozen=True)
class Transfer:
    """A collective of a step.

    size: bytes of the whole tensor. passes: 1 for all-gather and reduce-scatter, 2 for all-reduce. among: all GPUs,
    those of one host, or one GPU of every host. every_microstep: False if it happens once, however many micro steps
    are accumulated. hidden: whether computation can go on meanwhile.
    """

    size: int
    passes: int = 1
    among: Literal["all", "host", "hosts"] = "all"
    every_microstep: bool = True
    hidden: bool = True


@dataclass(frozen=True)
class Sent:
    """Bytes that one GPU sends, and as many that it receives."""

    inside: float = 0.0  # to the other GPUs of its host
    network: float = 0.0  # its share of what its host sends to other hosts

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.inside + other.inside, self.network + other.network)

    def times(self, factor: int) -> Sent:
        return Sent(self.inside * factor, self.network * factor)


@dataclass(frozen=True)
class Hardware:
    """Speeds of one GPU: bytes per second in one direction, floating-point operations per second.

    `usable` is the share of a link's speed that large collectives reach, `busy` the share of the peak that a training
    step reaches; both are assumptions.
    """

    inside: float
    network: float
    peak: float
    usable: float = 0.8
    busy: float = 0.4

    def seconds(self, sent: Sent) -> float:
        """Both kinds of links work at the same time."""
        return max(sent.inside / self.inside, sent.network / self.network) / self.usable


_CONFIGS = {  # (LoRA, stage): without offloading
    (False, 2): "deepspeed_config_s2",
    (False, 3): "deepspeed_config_s3",
    (True, 2): "deepspeed_config_lora_s2",
    (True, 3): "deepspeed_config_lora_s3_no_offload",
}
H100 = Hardware(inside=450e9, network=50e9, peak=989e12)  # NVLink 4; 400 Gbit/s per GPU; dense bf16
H100_ETHERNET = replace(H100, network=12.5e9 / 8)  # 100 Gbit/s per host of 8 GPUs


def with_engine(run: Run, engine: Engine) -> Run:
    """The run with the DeepSpeed configuration, or the options of FSDP, that belong to the engine."""
    stage = {"zero1": 2, "zero2": 2, "zero3": 3}.get(engine)
    if stage is None:
        return replace(run, zero=None, fsdp=None if engine == "ddp" else run.fsdp or FsdpOptions())
    zero = read_zero(_CONFIGS[run.lora, stage], run.architecture.hidden)
    return replace(run, zero=replace(zero, stage=1) if engine == "zero1" else zero, fsdp=None)


def plan_with(run: Run, engine: Engine) -> Plan:
    """The memory of a run under an engine; with hybrid sharding it is that of one host alone."""
    run, machine = with_engine(run, engine), run.machine
    if engine == "hybrid":
        run = replace(run, machine=replace(machine, gpus=machine.gpus_per_host, hosts=1))
    return estimate(run)


def transfers(run: Run, engine: Engine) -> list[Transfer]:
    """The collectives of a step with P trained and W weights in all.

    ddp: all-reduce of the gradients. zero1, zero2: the same, because DeepSpeed sums its buckets with an all-reduce
    (`use_multi_rank_bucket_allreduce`), and an all-gather of what the optimizer changed. zero3, fsdp: all-gather of W
    in the forward and in the backward pass, reduce-scatter of the gradients. hybrid: that inside a host, then an
    all-reduce of each GPU's part of the gradients between hosts.
    """
    run = with_engine(run, engine)
    if engine in ("fsdp", "hybrid"):
        return _fsdp(run, hybrid=engine == "hybrid" and run.machine.hosts > 1)
    gradients = run.trained * run.trained_bytes
    if engine == "ddp":
        return [Transfer(gradients, 2, every_microstep=False)]
    if engine == "zero3":
        base, adapter = _base(run), (run.trained - _persistent(run)) * run.compute_bytes if run.lora else 0
        # Nothing before the first adapter is differentiated, so the embedding is not needed again.
        spared = run.lora and not (run.gradient_checkpointing or run.trains_embedding or run.architecture.tied)
        again = base - run.architecture.embedding_elements * run.compute_bytes * spared
        return [Transfer(base + adapter), Transfer(again + adapter), Transfer(gradients)]
    reduced = Transfer(gradients, 2, every_microstep=engine == "zero2")
    return [reduced, Transfer(gradients, every_microstep=False, hidden=False)]


def _fsdp(run: Run, *, hybrid: bool) -> list[Transfer]:
    among: Literal["all", "host"] = "host" if hybrid else "all"
    gradients = run.trained * (4 if run.half else run.trained_bytes)
    weights = _base(run) + (run.trained * run.compute_bytes if run.lora else 0)
    found = [Transfer(weights, among=among)] * (2 if run.reshards else 1) + [Transfer(gradients, among=among)]
    if hybrid:
        found.append(Transfer(gradients // run.machine.gpus_per_host, 2, "hosts"))
    return found


def _base(run: Run) -> int:
    """Bytes of the model that are gathered, without the adapter."""
    a = run.architecture
    if not run.q_lora:
        return (a.parameters - a.other) * run.compute_bytes
    return a.linear_elements // 2 + (a.unquantised_elements - a.other) * run.compute_bytes


def _persistent(run: Run) -> int:
    """Elements of the adapter in matrices so small that ZeRO-3 does not divide them."""
    assert run.zero is not None
    rank = run.lora_r
    sizes = [(n, rank * max(1, m.stacked) * side) for m, n in run.adapters for side in (m.inputs, m.outputs)]
    return sum(n * size for n, size in sizes if size <= run.zero.persistence)


def sent(transfer: Transfer, run: Run) -> Sent:
    """What one GPU sends for one collective."""
    n, hosts, per_host = run.machine.gpus, run.machine.hosts, run.machine.gpus_per_host
    ranks = {"all": n, "host": per_host, "hosts": hosts}[transfer.among]
    volume = transfer.passes * transfer.size * (ranks - 1) / ranks
    if transfer.among == "hosts":
        return Sent(0, volume)
    if transfer.among == "host" or hosts == 1:
        return Sent(volume, 0)
    return Sent(volume * (per_host - 1) / per_host, volume / per_host)


def sent_per_step(run: Run, engine: Engine, *, hidden: bool | None = None) -> Sent:
    """What one GPU sends in a step; `hidden`: only what can, or cannot, overlap with computation."""
    total = Sent()
    for transfer in transfers(run, engine):
        if hidden in (None, transfer.hidden):
            times = run.gradient_accumulation_steps if transfer.every_microstep else 1
            total += sent(transfer, run).times(times)
    return total


def operations_per_token(run: Run) -> float:
    """Floating-point operations for a token of a row of `model_max_length` tokens, attention included.

    A matrix of E elements takes 2 E forward, 2 E for the gradient of its input and, if it is trained, 2 E for its own;
    checkpointing repeats the forward pass of the layers. Causal attention takes 2 x width x length per layer forward
    (half of all pairs), twice that backward.
    """
    a = run.architecture
    layers = a.linear_elements + sum(n * _active(kind) for kind, n in a.kind_counts)
    head = a.vocab * a.hidden
    backward = 2 if run.lora else 4
    again = 2 * run.checkpointed_layers / a.num_layers
    matrices = layers * (2 + backward + again) + head * (2 + backward)
    attention = 2 * a.num_layers * a.num_heads * a.head_dim * run.model_max_length * (3 + again / 2)
    return matrices + attention + (6 * run.trained if run.lora else 0)


def _active(layer: Layer) -> int:
    """Elements of the experts that a token passes through."""
    experts = layer.experts
    return round(sum(stack.elements for stack in experts.stacks) * experts.active / experts.num) if experts else 0


def compute_seconds(run: Run, hardware: Hardware) -> float:
    """The computation of one micro step."""
    return run.tokens * operations_per_token(run) / (hardware.peak * hardware.busy)


def step_seconds(run: Run, engine: Engine, hardware: Hardware) -> float:
    """The longer of computation and of the communication that can overlap with it, and then the rest."""
    compute = run.gradient_accumulation_steps * compute_seconds(run, hardware)
    overlapping = hardware.seconds(sent_per_step(run, engine, hidden=True))
    return max(compute, overlapping) + hardware.seconds(sent_per_step(run, engine, hidden=False))


def hiding_tokens(run: Run, engine: Engine, hardware: Hardware) -> float:
    """Tokens per GPU and step from which computation hides the communication that can overlap with it.

    For collectives of every micro step it is tokens per GPU and micro step: accumulation does not change it.
    """
    once = replace(run, gradient_accumulation_steps=1)
    communication = hardware.seconds(sent_per_step(once, engine, hidden=True))
    return communication * hardware.peak * hardware.busy / operations_per_token(run)
