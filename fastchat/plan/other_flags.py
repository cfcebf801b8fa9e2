"""The training flags that do not change memory, and the values they take: a plan of a misspelt run helps nobody.

The training commands' own checks import transformers, which takes seconds, so kinds and ranges stand here once more;
tests compare both tables with training's, and the messages word for word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastchat.errors import SettingsError
from fastchat.settings.typed import to_bool, to_choice, to_float, to_int, to_mapping, to_text

SWITCH, WHOLE, NUMBER, TEXT, LIST, MAPPING, ANYTHING = "switch", "whole", "number", "text", "list", "mapping", "any"
_KINDS = {
    SWITCH: """
        plan trust_remote_code overwrite_cache lazy_preprocess log_samples verify_packing logging_first_step
        eval_on_start save_only_model load_best_model_at_end full_determinism dataloader_drop_last
        dataloader_pin_memory dataloader_persistent_workers do_train do_eval group_by_length overwrite_output_dir
        resume_weights_only tf32 disable_tqdm greater_is_better ddp_find_unused_parameters ddp_broadcast_buffers
        ddp_static_graph""",
    WHOLE: """
        preprocessing_num_workers save_total_limit data_seed dataloader_prefetch_factor ddp_bucket_cap_mb
        early_stopping_patience max_steps per_device_eval_batch_size seed dataloader_num_workers ddp_timeout
        local_rank lora_alpha""",
    NUMBER: """
        rope_scaling_factor neftune_noise_alpha eval_steps val_set_size num_train_epochs learning_rate warmup_steps
        weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor logging_steps eval_delay
        save_steps warmup_ratio""",
    TEXT: """
        data_split eval_data_split log_level log_level_replica train_sampling_strategy data_revision conv_template
        conv_template_file output_dir run_name metric_for_best_model dataloader_multiprocessing_context ddp_backend
        resume_from_checkpoint rope_scaling_type padding_side overlong on_bad_row train_on lr_scheduler_type
        logging_strategy eval_strategy save_strategy on_nonfinite""",
    LIST: "data_path eval_data_path data_proportions report_to",
    MAPPING: "lr_scheduler_kwargs gradient_checkpointing_kwargs activation_checkpointing_kwargs",
    ANYTHING: "include_num_input_tokens_seen",
}
KINDS = {name: kind for kind, names in _KINDS.items() for name in names.split()}
SKIPPED = frozenset(KINDS)

_SCHEDULES = """linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt
    reduce_lr_on_plateau cosine_with_min_lr cosine_warmup_with_min_lr warmup_stable_decay greedy"""
_OPTIMIZERS = """adamw_torch adamw_torch_fused adamw_torch_xla adamw_torch_npu_fused adafactor adamw_anyprecision
    adamw_torch_4bit adamw_torch_8bit ademamix sgd adagrad adamw_bnb_8bit adamw_8bit ademamix_8bit lion_8bit lion_32bit
    paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit rmsprop
    rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit galore_adamw galore_adamw_8bit galore_adafactor
    galore_adamw_layerwise galore_adamw_8bit_layerwise galore_adafactor_layerwise lomo adalomo grokadamw
    schedule_free_radam schedule_free_adamw schedule_free_sgd apollo_adamw apollo_adamw_layerwise stable_adamw"""
_CHOICES = {
    "optim": _OPTIMIZERS,
    "lora_bias": "none all lora_only",
    "rope_scaling_type": "linear dynamic yarn llama3",
    "padding_side": "right left",
    "overlong": "truncate drop error",
    "on_bad_row": "stop skip",
    "train_on": "assistant last all",
    "lr_scheduler_type": _SCHEDULES,
    "logging_strategy": "no steps epoch",
    "eval_strategy": "no steps epoch",
    "save_strategy": "no steps epoch best",
    "on_nonfinite": "stop skip",
}
CHOICES = {name: tuple(words.split()) for name, words in _CHOICES.items()}
# Those that a recipe may leave empty.
_OPTIONAL = """
    data_path eval_data_path data_proportions report_to data_revision conv_template conv_template_file output_dir
    run_name metric_for_best_model dataloader_multiprocessing_context ddp_backend resume_from_checkpoint
    preprocessing_num_workers save_total_limit data_seed dataloader_prefetch_factor ddp_bucket_cap_mb
    early_stopping_patience lr_scheduler_kwargs gradient_checkpointing_kwargs activation_checkpointing_kwargs tf32
    disable_tqdm greater_is_better ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph
    rope_scaling_type rope_scaling_factor neftune_noise_alpha eval_steps"""
OPTIONAL = frozenset(_OPTIONAL.split())

RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "per_device_eval_batch_size lora_alpha save_total_limit ddp_timeout dataloader_prefetch_factor "
        "ddp_bucket_cap_mb early_stopping_patience preprocessing_num_workers",
        lambda x: x >= 1,
        "at least 1",
    ),
    (
        "num_train_epochs learning_rate logging_steps save_steps eval_steps adam_epsilon neftune_noise_alpha",
        lambda x: x > 0,
        "above 0",
    ),
    (
        "warmup_steps weight_decay max_grad_norm seed data_seed dataloader_num_workers eval_delay",
        lambda x: x >= 0,
        "0 or more",
    ),
    ("label_smoothing_factor adam_beta1 adam_beta2", lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ("warmup_ratio", lambda x: 0 <= x <= 1, "between 0 and 1"),
    ("rope_scaling_factor", lambda x: x >= 1, "at least 1 (1 changes nothing, 2 doubles the context)"),
)


def value_of(name: str, raw: Any, label: str) -> Any:
    """The typed value of one flag in KINDS. SettingsError, beginning with `label`, for one of the wrong kind.

    >>> value_of("learning_rate", "1e-5", "--learning_rate")
    1e-05
    """
    kind = KINDS[name]
    if raw is None or (raw == "None" and name in OPTIONAL):
        if name in OPTIONAL:
            return None
        raise SettingsError(f"{label} is empty; give a value or leave the line out")
    if isinstance(raw, dict):
        if kind == MAPPING:
            return raw
        raise SettingsError(f"{label} holds a mapping, but one value is expected")
    if kind == LIST:
        return [to_text(item, label) for item in (raw if isinstance(raw, list) else [raw])]
    if isinstance(raw, list):
        raise SettingsError(f"{label} holds a list, but one value is expected")
    if name in CHOICES:
        return to_choice(raw, label, CHOICES[name])
    return _CONVERT[kind](raw, label)


def check_ranges(values: Mapping[str, Any]) -> None:
    """SettingsError where a number is outside of what its flag can be."""
    for names, holds, wanted in RANGES:
        for name in names.split():
            if values.get(name) is not None and not holds(values[name]):
                raise SettingsError(f"--{name} is {values[name]}; it must be {wanted}")
    if values.get("max_steps") == 0:
        raise SettingsError("--max_steps is 0, so nothing would be trained; give a positive number or leave it out")
    size = values.get("val_set_size", 0)
    if size < 0 or (size >= 1 and size != int(size)):
        raise SettingsError(
            f"--val_set_size is {size:g}; it must be a whole number of dialogues, or a share of them below 1"
        )


_CONVERT: dict[str, Callable[[Any, str], Any]] = {
    SWITCH: to_bool,
    WHOLE: to_int,
    NUMBER: to_float,
    TEXT: to_text,
    MAPPING: to_mapping,
    ANYTHING: lambda raw, label: raw,
}
