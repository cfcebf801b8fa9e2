"""All settings of this project, each defined once: `--help`, the argument reader, the checks, the preview, the planner,
resume and docs/settings.md all read them here.

To add a plain setting, add a field. The settings of transformers are in `transformers_arguments.py`, those of planner
and preview in `tool_arguments.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fastchat.settings.data_names import COLUMNS, roles
from fastchat.settings.engine_arguments import EngineArguments
from fastchat.settings.evaluation_arguments import EvaluationArguments
from fastchat.settings.fields import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    BELOW_ONE,
    FIXED,
    FREE,
    NUMBER_OR_SHARE,
    SHARE,
    STRETCH,
    setting,
)
from fastchat.settings.foreign import TARGET_NAMES, by_value, first_weights, paths_of, rope, template
from fastchat.settings.targets import LORA_TARGETS
from fastchat.settings.transformers_arguments import RefusedArguments, TransformersArguments

_model = partial(setting, group="Model")
_data = partial(setting, group="Data")
_lora = partial(setting, group="LoRA")
_run = partial(setting, group="Run and checkpoints")


@dataclass
class ModelArguments:
    """The base model, and how it is loaded."""

    model_name_or_path: str | None = _model(
        None,
        "folder (or hub name) of the base model",
        elsewhere="base_model model model_name model_path model_id pretrained_model_name_or_path model_id_or_path",
        resume=FREE,
        common=True,
        memory=True,
        path=True,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _model(
        "auto",
        "dtype of the base weights; auto means that of the checkpoint",
        also="torch_dtype",
        translate={
            "dtype": by_value(
                {"bf16": "write bfloat16", "fp16": "write float16", "half": "write float16", "fp32": "write float32"},
                "",
            )
        },
        resume=FIXED,
        memory=True,
    )
    flash_attn: bool = _model(
        False,
        "use FlashAttention 2 if it is installed, otherwise the fastest kernel of torch, with a message",
        elsewhere="flash_attention use_flash_attention use_flash_attn use_flash_attention_2",
        translate={
            "flash_attn": by_value(
                dict.fromkeys(("auto", "fa2", "fa3"), "write true")
                | {"sdpa": "write false", "disabled": "write false"},
                "",
            ),
        },
        memory=True,
    )
    attn_implementation: str | None = _model(
        None,
        "attention kernel by its name in transformers, such as sdpa, flash_attention_3 or "
        "kernels-community/flash-attn3, instead of --flash_attn",
        memory=True,
    )
    rope_scaling_type: Literal["linear", "dynamic", "yarn", "llama3"] | None = _model(
        None,
        "extend the context: linear, dynamic (NTK-aware), yarn or llama3",
        translate={"rope_scaling": rope},
        resume=FIXED,
    )
    rope_scaling_factor: float | None = _model(
        None,
        "factor by which the context is extended; by default ceil(model_max_length / max_position_embeddings)",
        range=STRETCH,
        resume=FIXED,
    )
    padding_side: Literal["right", "left"] = _model("right", "side on which a batch is padded")
    use_tokenizer_class: bool = _model(
        False, "use the ids of the tokenizer's class in transformers, not those of tokenizer.json", resume=FREE
    )
    trust_remote_code: bool = _model(False, "run code from the model folder", resume=FREE)


@dataclass
class DataArguments:
    """The conversations, and how they become tokens."""

    data_path: list[str] | None = _data(
        None,
        "training conversations: files (.json, .jsonl, .gz, .parquet), patterns, folders, hub datasets",
        elsewhere="data data_files dataset_path train_data train_data_path dataset_name_or_path",
        translate=dict.fromkeys(
            (
                "datasets",
                "dataset",
                "dataset_name",
                "train_file",
                "train_files",
                "train_dataset",
                "pretraining_dataset",
            ),
            paths_of("data_path"),
        ),
        resume=FREE,
        common=True,
        path=True,
    )
    eval_data_path: list[str] | None = _data(
        None,
        "conversations to evaluate on, in the same form as --data_path",
        translate={
            name: paths_of("eval_data_path")
            for name in ("test_datasets", "eval_dataset", "validation_file", "val_file", "eval_file", "test_file")
        },
        resume=FREE,
        common=True,
        path=True,
    )
    val_set_size: float = _data(
        0.0,
        "number of training dialogues held out for evaluation (below 1: share of them)",
        range=NUMBER_OR_SHARE,
        elsewhere="val_size validation_split_percentage test_size eval_size test_split_size",
        resume=FIXED,
        common=True,
    )
    data_split: str = _data(
        "train",
        "split of the hub datasets in --data_path",
        elsewhere="dataset_train_split train_split split",
        resume=FREE,
    )
    eval_data_split: str = _data(
        "test",
        "split of the hub datasets in --eval_data_path",
        elsewhere="dataset_test_split test_split eval_split",
        resume=FREE,
    )
    data_revision: str | None = _data(
        None, "branch, tag or commit of the hub datasets", elsewhere="dataset_revision", resume=FREE
    )
    data_proportions: list[str] | None = _data(
        None,
        "shares of the --data_path values in the dialogues of an epoch; no dialogue is repeated",
        elsewhere="interleave_probs dataset_weights",
        resume=FIXED,
    )
    data_columns: dict[str, str] | None = _data(
        None,
        'names of columns and of keys of turns in the data: {"messages": "chat", "role": "speaker"}',
        translate=COLUMNS,
        resume=FIXED,
    )
    data_roles: dict[str, str] | None = _data(
        None,
        'names of roles in the data: {"customer": "user", "agent": "assistant"}',
        translate={"roles": roles},
        resume=FIXED,
    )
    conv_template: str | None = _data(
        None,
        "prompt template, or tokenizer for the chat template of the model; by default vicuna_v1.1 if no other fits",
        translate=dict.fromkeys(
            ("template", "chat_template", "prompt_template", "prompt_template_name", "conversation_template"), template
        ),
        resume=FREE,
        common=True,
    )
    conv_template_file: str | None = _data(
        None, "my.py or my.yaml that defines your own template", resume=FREE, path=True
    )
    preprocessing_num_workers: int | None = _data(
        None,
        "number of processes that tokenize; by default one per CPU",
        range=AT_LEAST_ONE,
        elsewhere="dataset_processes dataset_num_proc num_proc preprocessing_workers",
        resume=FREE,
    )
    overwrite_cache: bool = _data(
        False,
        "tokenize again, even if the token cache already has the tokens",
        elsewhere="overwrite_dataset_cache",
        resume=FREE,
    )
    lazy_preprocess: bool = _data(False, "accepted, but has no effect: data is always streamed", resume=FREE)
    overlong: Literal["truncate", "drop", "error"] = _data(
        "truncate",
        "what to do with dialogues longer than --model_max_length",
        elsewhere="excess_length_strategy truncation_mode truncation_strategy",
        resume=FIXED,
    )
    on_bad_row: Literal["stop", "skip"] = _data("stop", "stop at invalid rows, or skip and count them", resume=FREE)
    train_on: Literal["assistant", "last", "all"] = _data(
        "assistant",
        "train on every answer, only on the last one, or on all tokens except BOS (including prompts)",
        translate={
            "train_on_inputs": by_value({"true": "train_on: all"}, "train_on: assistant"),
            "train_on_prompt": by_value({"true": "train_on: all"}, "train_on: assistant"),
            "assistant_only_loss": by_value({"true": "train_on: assistant"}, "train_on: all"),
            "completion_only_loss": by_value({"true": "train_on: assistant"}, "train_on: all"),
            "train_on_responses_only": by_value({"true": "train_on: assistant"}, "train_on: all"),
            "mask_history": by_value({"true": "train_on: last"}, "train_on: assistant"),
        },
        resume=FIXED,
    )
    log_samples: bool = _data(False, "log the rows of each step and rank to samples.jsonl", resume=FREE)
    packing: bool = _data(
        False,
        "pack several dialogues into up to --model_max_length tokens, without attention between them",
        elsewhere="sample_packing neat_packing use_packing",
        resume=FIXED,
        common=True,
        memory=True,
    )
    packing_prefix_tree: bool = _data(True, "compute common prefixes of the examples in a pack once", resume=FREE)
    verify_packing: bool = _data(
        False,
        "before training, compare loss and gradients with and without packing on this model",
        resume=FREE,
    )


@dataclass
class LoraArguments:
    """The adapter: its rank, its layers, and whether the base model is quantized."""

    lora_r: int = _lora(
        8,
        "rank of the adapter",
        range=AT_LEAST_ONE,
        elsewhere="lora_rank lora_dim lora_attn_dim rank r",
        resume=FIXED,
        common=True,
        memory=True,
    )
    lora_alpha: int = _lora(
        16, "the adapter's output is scaled by lora_alpha / lora_r", range=AT_LEAST_ONE, resume=FIXED, common=True
    )
    lora_dropout: float = _lora(
        0.05,
        "dropout before the adapter; above 0, every adapter keeps a copy of its input",
        range=BELOW_ONE,
        memory=True,
    )
    lora_target_modules: list[str] = _lora(
        list(LORA_TARGETS),
        "layers to adapt: names, a regular expression, or all-linear (the default where blocks have other layers)",
        translate=TARGET_NAMES,
        resume=FIXED,
        common=True,
        memory=True,
    )
    lora_target_parameters: list[str] | None = _lora(
        None,
        "parameters to adapt that are not layers, such as mlp.experts.down_proj of a mixture of experts; no dropout",
        elsewhere="target_parameters",
        resume=FIXED,
        memory=True,
    )
    lora_weight_path: str = _lora(
        "",
        "folder of an adapter to train further",
        elsewhere="lora_model_dir adapter_name_or_path adapter_path lora_path lora_weights",
        resume=FIXED,
        memory=True,
        path=True,
    )
    lora_bias: Literal["none", "all", "lora_only"] = _lora(
        "none", "biases to train as well", elsewhere="bias", resume=FIXED, memory=True
    )
    lora_init: str = _lora(
        "default",
        "first weights of a new adapter: default, gaussian, pissa, pissa_niter_N, olora, eva or loftq",
        translate={
            "pissa_init": by_value({"true": "lora_init: pissa"}, "leave it out"),
            **dict.fromkeys(("peft_init_lora_weights", "init_lora_weights"), first_weights),
        },
        resume=FIXED,
        memory=True,
    )
    use_rslora: bool = _lora(
        False,
        "scale the adapter's output by lora_alpha / sqrt(lora_r) (rank-stabilized LoRA)",
        elsewhere="peft_use_rslora",
        resume=FIXED,
    )
    use_dora: bool = _lora(
        False,
        "train the length of each weight row apart from its direction (DoRA)",
        elsewhere="peft_use_dora",
        resume=FIXED,
        memory=True,
    )
    loraplus_lr_ratio: float | None = _lora(
        None, "LoRA+: the B matrices learn at learning_rate times this", range=ABOVE_ZERO, resume=FIXED
    )
    lora_modules_to_save: list[str] = _lora(
        [],
        "names of modules to train and save whole, such as embed_tokens lm_head",
        elsewhere="modules_to_save additional_target",
        resume=FIXED,
        memory=True,
    )
    trainable_tokens: list[str] = _lora(
        [],
        "tokens whose embedding and output rows are trained: texts, ids, or untrained: all that the base never learned",
        elsewhere="trainable_token_indices peft_trainable_token_indices",
        resume=FIXED,
        memory=True,
    )
    lora_layers_to_transform: list[str] = _lora(
        [],
        "numbers of the decoder layers to adapt, counted from 0, such as 0-7 15; by default all",
        elsewhere="peft_layers_to_transform layers_to_transform",
        resume=FIXED,
        memory=True,
    )
    q_lora: bool = _lora(
        False,
        "quantize the base model to 4 bits (nf4, double quantization)",
        elsewhere="load_in_4bit qlora use_qlora use_4bit",
        translate={
            "quantization_bit": by_value(
                {"4": "q_lora: true"}, "q_lora: true loads the base in 4 bits, the only choice"
            ),
        },
        resume=FIXED,
        common=True,
        memory=True,
    )


@dataclass
class RunArguments(EvaluationArguments, EngineArguments, TransformersArguments):
    """The training arguments of transformers, and those that this project adds."""

    cache_dir: str | None = _model(None, "cache folder of hub models", resume=FREE, memory=True, path=True)
    model_max_length: int = _data(
        512,
        "maximum length of a dialogue in tokens; see --overlong",
        range=AT_LEAST_ONE,
        elsewhere="sequence_len cutoff_len max_length max_len max_seq_length max_seq_len seq_len seq_length block_size "
        "sequence_length context_length max_source_length",
        resume=FIXED,
        common=True,
        memory=True,
    )
    warmup_ratio: float = setting(
        0.0,
        "share of the steps used for warmup; --warmup_steps takes precedence",
        group="Optimization",
        range=SHARE,
        common=True,
    )
    group_by_length: bool = _data(False, "batch dialogues of similar length (less padding)", resume=FREE)
    chunked_head: bool = setting(
        True,
        "compute logits of learned tokens only, in chunks; False: of all tokens at once",
        group="Precision and memory",
        memory=True,
    )
    overwrite_output_dir: bool = _run(False, "replace an existing result in --output_dir", resume=FREE)
    resume_weights_only: bool = _run(
        False, "resume the weights and position of a checkpoint, with a new optimizer state", resume=FREE
    )
    on_nonfinite: Literal["stop", "skip"] = _run(
        "stop",
        "stop at a non-finite loss or gradient, or skip the update of that step",
        resume=FREE,
    )
    run_report: Literal["png", "html", "none"] = _run(
        "png",
        "report of the run in --output_dir: report.html and, if matplotlib is installed, its charts as PNGs; only "
        "report.html; or none",
        resume=FREE,
    )


def all_arguments(lora: bool) -> tuple[type[Any], ...]:
    """The dataclasses with the settings of one run; full fine-tuning has no LoRA settings."""
    common: tuple[type[Any], ...] = (ModelArguments, DataArguments, RunArguments, RefusedArguments)
    return (*common, LoraArguments) if lora else common
