"""Every setting of a training run: four dataclasses, with the documents' names and defaults.

The dataclasses only hold values. `options.py` reads them from a recipe file and the command line, `checks.py` refuses
what cannot work, `settings.py` puts the three together. Importing this module imports transformers (5 to 12 s).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import transformers

from fastchat.errors import values_without_secrets

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class ModelArguments:
    """Which base model, and how it is loaded."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "folder (or hub name) of the base model"})
    dtype: str = field(
        default="auto",
        metadata={"help": "dtype of the base weights: auto (the checkpoint's own), float32, bfloat16 or float16"},
    )
    flash_attn: bool = field(
        default=False, metadata={"help": "flash_attention_2 where it is installed, else torch's best, said in one line"}
    )
    rope_scaling_type: Literal["linear", "dynamic", "yarn", "llama3"] | None = field(
        default=None, metadata={"help": "lengthen the context: linear, dynamic (NTK-aware), yarn or llama3"}
    )
    rope_scaling_factor: float | None = field(
        default=None,
        metadata={"help": "how much longer; default float(ceil(model_max_length / max_position_embeddings))"},
    )
    padding_side: Literal["right", "left"] = field(default="right", metadata={"help": "where a batch is padded"})
    use_tokenizer_class: bool = field(
        default=False, metadata={"help": "ids of the tokenizer's class in transformers, not those of tokenizer.json"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run code that the model folder brings"})


@dataclass
class DataArguments:
    """Which conversations, and how they become tokens."""

    data_path: list[str] | None = field(
        default=None, metadata={"help": "training conversations: files, patterns, folders, datasets of the hub"}
    )
    eval_data_path: list[str] | None = field(default=None, metadata={"help": "held-out conversations, named alike"})
    val_set_size: float = field(
        default=0.0, metadata={"help": "hold out so many of the training dialogues (or below 1 that share) instead"}
    )
    data_split: str = field(default="train", metadata={"help": "split of the hub datasets in --data_path"})
    eval_data_split: str = field(default="test", metadata={"help": "split of the hub datasets in --eval_data_path"})
    data_revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of the hub datasets"})
    data_proportions: list[str] | None = field(
        default=None,
        metadata={"help": "shares of the --data_path values among the dialogues of an epoch; none is repeated"},
    )
    conv_template: str | None = field(default=None, metadata={"help": "prompt template; vicuna_v1.1 where none fits"})
    conv_template_file: str | None = field(
        default=None, metadata={"help": "my.py or my.yaml that registers a template of your own"}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "processes that tokenise; default as many as the machine has CPUs for"}
    )
    overwrite_cache: bool = field(default=False, metadata={"help": "tokenise anew, whatever the token cache holds"})
    lazy_preprocess: bool = field(default=False, metadata={"help": "accepted, without effect: data is always streamed"})
    overlong: Literal["truncate", "drop", "error"] = field(
        default="truncate", metadata={"help": "what happens to dialogues beyond --model_max_length"}
    )
    on_bad_row: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "stop at malformed rows, or skip and count them"}
    )
    train_on: Literal["assistant", "last", "all"] = field(
        default="assistant",
        metadata={"help": "learn every trained answer, only the last one, or all tokens but BOS (prompts too)"},
    )
    log_samples: bool = field(
        default=False,
        metadata={"help": "write which rows each step and rank trained into samples.jsonl"},
    )
    packing: bool = field(
        default=False,
        metadata={"help": "several dialogues in a row of up to --model_max_length tokens; none sees another"},
    )
    verify_packing: bool = field(
        default=False,
        metadata={"help": "before training, compare packed loss and gradients with unpacked ones on this model"},
    )


@dataclass
class LoraArguments:
    """The adapter: its size, where it sits, and whether the base below it is quantised."""

    lora_r: int = field(default=8, metadata={"help": "rank of the adapter"})
    lora_alpha: int = field(default=16, metadata={"help": "the adapter's output is scaled by lora_alpha / lora_r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout in front of the adapter"})
    lora_target_modules: list[str] = field(
        default_factory=lambda: list(LORA_TARGETS),
        metadata={"help": "names of the layers that get an adapter, separated by spaces or commas"},
    )
    lora_weight_path: str = field(default="", metadata={"help": "folder of an adapter to go on training"})
    lora_bias: Literal["none", "all", "lora_only"] = field(default="none", metadata={"help": "which biases train too"})
    q_lora: bool = field(default=False, metadata={"help": "4-bit base (nf4, double quantisation) below the adapter"})


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own training arguments, plus the names that scripts still use and transformers 5 dropped.

    Differs from transformers' defaults where the documents do: one log row per step, evaluation and checkpoints only
    when asked for, no loss ever replaced because it is NaN.
    """

    cache_dir: str | None = field(default=None, metadata={"help": "where hub models are kept"})
    model_max_length: int = field(default=512, metadata={"help": "dialogues are cut to this many tokens"})
    optim: transformers.training_args.OptimizerNames | str = field(
        default="adamw_torch", metadata={"help": "the optimizer"}
    )
    warmup_ratio: float = field(
        default=0.0, metadata={"help": "share of the steps that warm up; --warmup_steps wins where both are given"}
    )
    group_by_length: bool = field(
        default=False, metadata={"help": "put dialogues of similar length into one batch (less padding)"}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "replace a result that --output_dir already holds"}
    )
    gradient_checkpointing: bool = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=False, metadata={"help": "recompute activations in the backward pass: less memory, a third slower"}
    )
    chunked_head: bool = field(
        default=True,
        metadata={"help": "run the output matrix on supervised tokens only, in chunks; False: on all, at once"},
    )
    logging_steps: float = field(default=1, metadata={"help": "steps between two rows of metrics.jsonl"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "never: a NaN loss is shown as what it is"})
    save_strategy: transformers.trainer_utils.SaveStrategy | str = field(
        default="no", metadata={"help": "checkpoints while training: no, epoch, steps or best"}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "auto (the default: go on behind the checkpoints in --output_dir), never, or a folder"},
    )
    resume_weights_only: bool = field(
        default=False,
        metadata={"help": "go on with the weights and the position of a checkpoint, with a new optimizer state"},
    )
    on_nonfinite: Literal["stop", "skip"] = field(
        default="stop",
        metadata={"help": "a loss or gradient that is not finite stops the run, or that step's update is left out"},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "stop after so many evaluations in a row without a new best eval loss"},
    )

    def __post_init__(self) -> None:
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """What reports (wandb, TensorBoard) are given, and write into files of their own: without secrets."""
        return values_without_secrets(super().to_dict())

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Number of optimizer steps over which the learning rate rises; `--warmup_steps` below 1 is a share too.

        The first of them has learning rate 0: a run of one step has none, or it would train nothing.
        """
        if num_training_steps == 1:
            return 0
        if self.warmup_ratio and not self.warmup_steps:
            return math.ceil(num_training_steps * self.warmup_ratio)
        return super().get_warmup_steps(num_training_steps)


RENAMED = {  # names in people's scripts -> the name used here
    "evaluation_strategy": "eval_strategy",
    "gradient_checkpoint": "gradient_checkpointing",
    "gradient_checkpoint_kwargs": "gradient_checkpointing_kwargs",
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "torch_dtype": "dtype",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}

_EVALUATION = "evaluation here computes the exact loss and nothing else, so there is nothing to set"
_HUB = "nothing is uploaded from here; upload the finished --output_dir with `hf upload`"
_COMPILE = "not supported; leave it out"
_ZERO3 = "use --deepspeed playground/deepspeed_config_{lora_}s3.json instead (ZeRO-3)"
_OURS = "batches are made by this project's own reader, so it would do nothing"
UNSUPPORTED: dict[str, str] = {  # flags of transformers that would have no effect here, and what to do instead
    "fsdp": _ZERO3,
    "fsdp_config": _ZERO3,
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "use_liger_kernel": _COMPILE,
    "liger_kernel_config": _COMPILE,
    "auto_find_batch_size": "set --per_device_train_batch_size yourself",
    "average_tokens_across_devices": "the loss is always divided by the global number of supervised tokens",
    "accelerator_config": _OURS,
    "parallelism_config": _COMPILE,
    "prediction_loss_only": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "bf16_full_eval": _EVALUATION,
    "fp16_full_eval": _EVALUATION,
    "enable_jit_checkpoint": _COMPILE,
    "ignore_data_skip": _COMPILE,
    "restore_callback_states_from_checkpoint": _COMPILE,
    "save_on_each_node": "the result is saved once, by global rank 0",
    "log_on_each_node": "only global rank 0 logs",
    "remove_unused_columns": _OURS,
    "label_names": _OURS,
    "length_column_name": _OURS,
    "dataloader_in_order": _OURS,
    "do_predict": "use `python -m fastchat.serve.cli --model-path OUTPUT_DIR` to see answers",
    "debug": _COMPILE,
    "skip_memory_metrics": _COMPILE,
    "torch_empty_cache_steps": _COMPILE,
    "optim_args": "set --adam_beta1, --adam_beta2, --adam_epsilon and --weight_decay instead",
    "optim_target_modules": _COMPILE,
    "use_cache": _COMPILE,
    "project": _COMPILE,
    "trackio_space_id": _COMPILE,
    "trackio_bucket_id": _COMPILE,
    "trackio_static_space_id": _COMPILE,
    "local_rank": "the launcher sets it",
    "logging_nan_inf_filter": "a NaN loss is always shown as what it is",
}

REMOVED: dict[str, str] = {  # flags of older transformers that have no counterpart
    "save_safetensors": "weights are always saved as safetensors; leave it out",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR instead",
    "fsdp_transformer_layer_cls_to_wrap": _ZERO3,
    "half_precision_backend": "leave it out; --bf16 True or --fp16 True is enough",
    "fp16_backend": "leave it out; --bf16 True or --fp16 True is enough",
    "fp16_opt_level": "leave it out; --bf16 True or --fp16 True is enough",
    "use_mps_device": "leave it out; the device is found by itself",
    "ddp_find_unused": "the name is --ddp_find_unused_parameters",
}


def way_out(instead: str, lora: bool) -> str:
    """An entry of UNSUPPORTED or REMOVED, with the DeepSpeed configuration that fits the command."""
    return instead.replace("{lora_}", "lora_" if lora else "")


def all_arguments(lora: bool) -> tuple[type[Any], ...]:
    """The dataclasses that make up one run's settings; full fine-tuning has no LoRA ones."""
    common: tuple[type[Any], ...] = (ModelArguments, DataArguments, TrainingArguments)
    return (*common, LoraArguments) if lora else common
