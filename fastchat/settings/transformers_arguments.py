"""The training arguments of transformers that this project supports, and those it refuses.

transformers itself is imported only when training starts; a test compares names, types, choices and defaults with its
class. A newer transformers may have more: they are passed through unchanged (`newer.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fastchat.settings.fields import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    BELOW_ONE,
    FIXED,
    FREE,
    NOT_NEGATIVE,
    NOT_ZERO,
    setting,
)
from fastchat.settings.foreign import by_value

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]
OPTIMIZERS = (
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor"),
    *("adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd", "adagrad", "adamw_bnb_8bit"),
    *("adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    *("paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit", "rmsprop", "rmsprop_bnb"),
    *("rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "galore_adamw", "galore_adamw_8bit", "galore_adafactor"),
    *("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo"),
    *("grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "apollo_adamw"),
    *("apollo_adamw_layerwise", "stable_adamw"),
)
_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
_BACKENDS = ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl")

_optimization = partial(setting, group="Optimization")
_precision = partial(setting, group="Precision and memory")
_evaluation = partial(setting, group="Evaluation")
_run = partial(setting, group="Run and checkpoints")
_logging = partial(setting, group="Logging")
_loader = partial(setting, group="Data loading")
_processes = partial(setting, group="Processes")
_auto = by_value({"auto": "write true if the GPU can do it, otherwise false", "full": "write true"}, "")


@dataclass
class TransformersArguments:
    """The supported training arguments of transformers, with this project's defaults."""

    output_dir: str | None = _run(
        None,
        "folder for the result, the checkpoints and the logs of the run",
        elsewhere="output out_dir save_dir output_path",
        resume=FREE,
        common=True,
        path=True,
    )
    per_device_train_batch_size: int = _optimization(
        8,
        "microbatch size per process: dialogues, or packs, in one forward pass",
        also="per_gpu_train_batch_size",
        elsewhere="micro_batch_size micro_batch mbs train_micro_batch_size_per_gpu",
        range=AT_LEAST_ONE,
        resume=FREE,  # compared as one number, the global batch
        common=True,
        memory=True,
    )
    num_train_epochs: float = _optimization(
        3.0,
        "number of passes over the data",
        elsewhere="num_epochs epochs n_epochs max_epochs train_epochs",
        range=ABOVE_ZERO,
        common=True,
    )
    max_steps: int = _optimization(
        -1,
        "number of optimizer steps; overrides --num_train_epochs",
        elsewhere="train_iters total_steps num_train_steps",
        range=NOT_ZERO,
        common=True,
    )
    learning_rate: float = _optimization(5e-5, "peak learning rate", elsewhere="lr", range=ABOVE_ZERO, common=True)
    lr_scheduler_type: Schedule = _optimization(
        "linear", "learning rate schedule", elsewhere="lr_scheduler scheduler", common=True
    )
    lr_scheduler_kwargs: dict[str, Any] | str | None = _optimization(
        None, "additional arguments of the schedule, as a mapping (JSON on the command line)"
    )
    warmup_steps: float = _optimization(0, "number of warmup steps (below 1: share of all steps)", range=NOT_NEGATIVE)
    optim: str = _optimization(
        "adamw_torch",
        "the optimizer",
        choices=OPTIMIZERS,
        elsewhere="optimizer optimizer_type",
        translate={"optim": by_value(dict.fromkeys(("adamw", "adamw_hf"), "write adamw_torch"), "")},
        resume=FIXED,
        memory=True,
    )
    weight_decay: float = _optimization(0.0, "weight decay of the optimizer", range=NOT_NEGATIVE)
    adam_beta1: float = _optimization(0.9, "beta1 of Adam", range=BELOW_ONE)
    adam_beta2: float = _optimization(0.999, "beta2 of Adam", range=BELOW_ONE)
    adam_epsilon: float = _optimization(1e-8, "epsilon of Adam", elsewhere="adam_eps", range=ABOVE_ZERO)
    gradient_accumulation_steps: int = _optimization(
        1,
        "microbatches per optimizer step",
        elsewhere="accumulation_steps grad_accum gradient_accumulation accumulate_grad_batches",
        range=AT_LEAST_ONE,
        resume=FREE,  # compared as one number, the global batch
        common=True,
        memory=True,
    )
    max_grad_norm: float = _optimization(
        1.0, "gradients are clipped to this norm; 0 turns clipping off", elsewhere="grad_clip", range=NOT_NEGATIVE
    )
    label_smoothing_factor: float = _optimization(0.0, "label smoothing of the training loss", range=BELOW_ONE)
    neftune_noise_alpha: float | None = _optimization(
        None, "noise on the embeddings while training (NEFTune)", elsewhere="noisy_embedding_alpha", range=ABOVE_ZERO
    )
    seed: int = _optimization(42, "random seed", elsewhere="random_state random_seed", range=NOT_NEGATIVE, resume=FIXED)
    data_seed: int | None = _optimization(
        None, "seed of the data order; by default --seed", range=NOT_NEGATIVE, resume=FIXED
    )
    full_determinism: bool = _optimization(False, "use deterministic kernels only (slower)")
    bf16: bool = _precision(False, "compute in bfloat16", translate={"bf16": _auto}, common=True, memory=True)
    fp16: bool = _precision(False, "compute in float16", translate={"fp16": _auto}, memory=True)
    tf32: bool | None = _precision(None, "use TF32 for float32 matrix products (Ampere GPUs and newer)")
    gradient_checkpointing: bool | str | int = _precision(
        False,
        "recompute activations in the backward pass, which needs less memory but is a third slower: True or full (all "
        "decoder layers), False or off, the number of layers (the first ones), or auto: as few as fit",
        also="gradient_checkpoint activation_checkpointing",
        translate={
            "gradient_checkpointing": by_value({"unsloth": "write true", "offload": "write true"}, ""),
            "use_gradient_checkpointing": by_value(
                {"false": "gradient_checkpointing: false"}, "gradient_checkpointing: true"
            ),
        },
        common=True,
        memory=True,
    )
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = _precision(
        None,
        "additional arguments of gradient checkpointing, as a mapping; by default {use_reentrant: false}",
        also="gradient_checkpoint_kwargs activation_checkpointing_kwargs",
    )
    torch_compile: bool = _precision(
        False,
        "compile the decoder layers with torch.compile, one graph for all of them; compiling takes a minute or two",
        elsewhere="compile use_torch_compile",
    )
    use_liger_kernel: bool = _precision(
        False,
        "use the norms, RoPE and SwiGLU of the package liger-kernel (needs a GPU)",
        elsewhere="use_liger enable_liger_kernel",
    )
    deepspeed: dict[str, Any] | str | None = _precision(
        None,
        "DeepSpeed configuration: a JSON file, or a mapping in a recipe",
        elsewhere="deepspeed_config deepspeed_config_file ds_config",
        resume=FREE,
        common=True,
        memory=True,
        path=True,
    )
    logging_strategy: Literal["no", "steps", "epoch"] = _logging("steps", "when to log to metrics.jsonl", resume=FREE)
    logging_steps: float = _logging(
        1,
        "steps between two lines of metrics.jsonl (below 1: share of all steps)",
        elsewhere="log_steps log_every_n_steps",
        range=ABOVE_ZERO,
        resume=FREE,
    )
    logging_first_step: bool = _logging(False, "always log the first step", resume=FREE)
    logging_nan_inf_filter: bool = _logging(
        False, "replace non-finite losses", refused="a NaN loss is always logged as NaN"
    )
    include_num_input_tokens_seen: str | bool = _logging(
        "no", "count input tokens in the logs: no, all (True) or non_padding"
    )
    log_level: str = _logging(
        "passive",
        "how much is printed: info and debug also print the proofs that log.txt has, and the messages of transformers",
        choices=_LEVELS,
        resume=FREE,
    )
    log_level_replica: str = _logging(
        "warning", "log level of transformers in the other processes", choices=_LEVELS, resume=FREE
    )
    disable_tqdm: bool | None = _logging(None, "show no progress bars", resume=FREE)
    report_to: list[str] | str | None = _logging(
        "none",
        "where to log in addition to metrics.jsonl: wandb, tensorboard, mlflow, trackio, all or none; by default wandb "
        "if configured",
        elsewhere="report_to_integrations",
        resume=FREE,
    )
    run_name: str | None = _logging(
        None, "name of the run in wandb, mlflow or trackio", elsewhere="wandb_name wandb_run_name", resume=FREE
    )
    eval_strategy: Literal["no", "steps", "epoch"] = _evaluation(
        "no", "when to evaluate", also="evaluation_strategy", common=True
    )
    eval_steps: float | None = _evaluation(
        None,
        "steps between evaluations with --eval_strategy steps (below 1: share of all steps)",
        range=ABOVE_ZERO,
    )
    eval_delay: float = _evaluation(0, "evaluate only after this many steps or epochs", range=NOT_NEGATIVE)
    per_device_eval_batch_size: int = _evaluation(
        8,
        "batch size per process in evaluation: dialogues, or packs",
        also="per_gpu_eval_batch_size",
        elsewhere="eval_batch_size eval_micro_batch_size",
        range=AT_LEAST_ONE,
    )
    eval_on_start: bool = _evaluation(False, "evaluate before the first step too", resume=FREE)
    do_eval: bool = _evaluation(False, "evaluate after training")
    load_best_model_at_end: bool = _evaluation(False, "save the weights with the best evaluation, not the last ones")
    metric_for_best_model: str | None = _evaluation(
        None,
        "metric of the best evaluation: loss, or with --eval_generate the share of right answers, such as exact_match",
    )
    greater_is_better: bool | None = _evaluation(
        None, "whether a larger metric is better; by default True for all but loss"
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = _run(
        "no", "when to save checkpoints during training", resume=FREE, common=True
    )
    save_steps: float = _run(
        500,
        "steps between checkpoints with --save_strategy steps (below 1: share of all steps)",
        range=ABOVE_ZERO,
        resume=FREE,
    )
    save_total_limit: int | None = _run(
        None, "number of checkpoints to keep; older ones are deleted", range=AT_LEAST_ONE, resume=FREE
    )
    save_only_model: bool = _run(
        False, "save checkpoints without the optimizer state; a run cannot resume from them", resume=FREE
    )
    resume_from_checkpoint: str | None = _run(
        None,
        "auto (the default: the newest checkpoint in --output_dir), never, or the folder of a checkpoint",
        resume=FREE,
        path=True,
    )
    push_to_hub: bool = _run(
        False, "upload the result, with its model card, to the Hugging Face hub after the run", resume=FREE
    )
    hub_model_id: str | None = _run(
        None, "repository to upload to, user/name; by default the name of --output_dir", resume=FREE
    )
    hub_private_repo: bool | None = _run(None, "create that repository as a private one", resume=FREE)
    hub_token: str | None = _run(
        None, "token for the upload; by default that of `hf auth login` or HF_TOKEN", resume=FREE
    )
    do_train: bool = _run(False, "accepted, but has no effect: the training commands always train", resume=FREE)
    dataloader_drop_last: bool = _loader(False, "drop the last batch of an epoch if it is not full", resume=FIXED)
    dataloader_num_workers: int = _loader(
        0, "number of processes that prepare batches", elsewhere="num_workers", range=NOT_NEGATIVE, resume=FREE
    )
    dataloader_pin_memory: bool = _loader(True, "copy batches to pinned memory", resume=FREE)
    dataloader_persistent_workers: bool = _loader(False, "keep the workers alive between epochs", resume=FREE)
    dataloader_prefetch_factor: int | None = _loader(
        None, "number of batches that each worker prepares in advance", range=AT_LEAST_ONE, resume=FREE
    )
    dataloader_multiprocessing_context: str | None = _loader(
        None, "start method of the workers", choices=("fork", "spawn", "forkserver"), resume=FREE
    )
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = _loader(
        "random", "order of the dialogues", resume=FIXED
    )
    use_cpu: bool = _processes(False, "train on the CPU", also="no_cuda", memory=True)
    ddp_find_unused_parameters: bool | None = _processes(
        None,
        "look for parameters without a gradient in every step; off by default",
        elsewhere="ddp_find_unused",
    )
    ddp_bucket_cap_mb: int | None = _processes(None, "size of the gradient buckets of DDP in MB", range=AT_LEAST_ONE)
    ddp_broadcast_buffers: bool | None = _processes(None, "whether DDP broadcasts the buffers of the model")
    ddp_static_graph: bool | None = _processes(None, "tell DDP that every step uses the same parameters")
    ddp_backend: str | None = _processes(None, "communication library", choices=_BACKENDS, resume=FREE)
    ddp_timeout: int = _processes(
        1800, "timeout in seconds of a process that waits for the others", range=AT_LEAST_ONE, resume=FREE
    )


_refused = partial(setting, help="", group="Not available")
_EVALUATION = "evaluation computes only the exact loss; leave it out"
_HUB = "only the finished result is uploaded, once; leave it out"
_NO = "not supported; leave it out"
_OURS = "batches are made by this project's own data loader; leave it out"


@dataclass
class RefusedArguments:
    """Training arguments of transformers that are not supported: only their defaults are accepted."""

    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = _refused("every_save", refused=_HUB)
    hub_always_push: bool = _refused(False, refused=_HUB)
    hub_revision: str | None = _refused(None, refused=_HUB)
    torch_compile_backend: str | None = _refused(None, refused=_NO)
    torch_compile_mode: str | None = _refused(None, refused=_NO)
    liger_kernel_config: dict[str, bool] | None = _refused(None, refused=_NO)
    auto_find_batch_size: bool = _refused(False, refused="set --per_device_train_batch_size yourself")
    average_tokens_across_devices: bool = _refused(
        True, refused="the loss is always divided by the global number of learned tokens"
    )
    accelerator_config: dict[str, Any] | str | None = _refused(None, refused=_OURS)
    parallelism_config: str | None = _refused(None, refused=_NO)
    prediction_loss_only: bool = _refused(False, refused=_EVALUATION)
    eval_do_concat_batches: bool = _refused(True, refused=_EVALUATION)
    eval_use_gather_object: bool = _refused(False, refused=_EVALUATION)
    eval_accumulation_steps: int | None = _refused(None, refused=_EVALUATION)
    include_for_metrics: list[str] = _refused([], refused=_EVALUATION)
    batch_eval_metrics: bool = _refused(False, refused=_EVALUATION)
    bf16_full_eval: bool = _refused(False, refused=_EVALUATION)
    fp16_full_eval: bool = _refused(False, refused=_EVALUATION)
    enable_jit_checkpoint: bool = _refused(False, refused=_NO)
    ignore_data_skip: bool = _refused(False, refused=_NO)
    restore_callback_states_from_checkpoint: bool = _refused(False, refused=_NO)
    save_on_each_node: bool = _refused(False, refused="the result is saved once, by global rank 0")
    log_on_each_node: bool = _refused(True, refused="only global rank 0 logs")
    remove_unused_columns: bool = _refused(True, refused=_OURS)
    label_names: list[str] | None = _refused(None, refused=_OURS)
    length_column_name: str = _refused("length", refused=_OURS)
    dataloader_in_order: bool = _refused(True, refused=_OURS)
    do_predict: bool = _refused(False, refused="use `fastchat chat OUTPUT_DIR` to see answers")
    debug: list[str] | str = _refused("", refused=_NO)
    skip_memory_metrics: bool = _refused(True, refused=_NO)
    torch_empty_cache_steps: int | None = _refused(None, refused=_NO)
    optim_args: str | None = _refused(
        None, refused="set --adam_beta1, --adam_beta2, --adam_epsilon and --weight_decay instead"
    )
    optim_target_modules: list[str] | str | None = _refused(None, refused=_NO)
    use_cache: bool = _refused(False, refused=_NO)
    project: str = _refused("huggingface", refused=_NO)
    trackio_space_id: str | None = _refused(None, refused=_NO)
    trackio_bucket_id: str | None = _refused(None, refused=_NO)
    trackio_static_space_id: str | None = _refused(None, refused=_NO)
    local_rank: int = _refused(-1, refused="the launcher sets it", resume=FREE)
