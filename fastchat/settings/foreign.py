"""Names of other programs (axolotl, LLaMA-Factory, TRL, alpaca-lora, older FastChat and transformers) and their values.

Names with an equivalent setting are in the field of that setting (`elsewhere`, `translate`). This module has the
functions for such translations, and the names without an equivalent, each with the reason or the way out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastchat.settings.fields import Translate
from fastchat.settings.targets import ALL_LINEAR


def yaml_text(value: Any) -> str:
    """One value as it is written in a recipe.

    >>> yaml_text(["a.json", "b"]), yaml_text(True), yaml_text(None)
    ('[a.json, b]', 'true', 'null')
    """
    if isinstance(value, list):
        return f"[{', '.join(yaml_text(item) for item in value)}]"
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str)


def by_value(table: Mapping[str, str], otherwise: str) -> Translate:
    """A translation by value, ignoring case and type."""
    return lambda raw: table.get(str(raw).lower(), otherwise)


def paths_of(name: str) -> Translate:
    """For a list of datasets that are mappings with `data_files`, a `path` (axolotl, TRL) or a `name`; also for plain
    names."""

    def translate(raw: Any) -> str:
        items = raw if isinstance(raw, list) else [raw] if isinstance(raw, dict) else str(raw).split(",")
        values = [str(value).strip() for item in items for value in _files(item) if value]
        listed = yaml_text(values[0] if len(values) == 1 else values) if values else "FILES"
        chosen = [str(i["name"]) for i in items if isinstance(i, dict) and i.get("path") and i.get("name")]
        more = f"; of the configuration {', '.join(chosen)}: download it and give its files" if chosen else ""
        return f"{name}: {listed} (files, folders, patterns or hub dataset names{more})"

    return translate


def _files(item: Any) -> list[Any]:
    if not isinstance(item, dict):
        return [item]
    files = item.get("data_files") or item.get("path") or item.get("name")
    return files if isinstance(files, list) else [files]


TEMPLATES = {
    **dict.fromkeys(("alpaca", "chatml", "chatglm3", "falcon", "gemma", "mistral", "tulu", "zephyr"), ""),
    **{"vicuna": "vicuna_v1.1", "llama2": "llama-2", "llama3": "llama-3", "qwen": "qwen2.5", "qwen25": "qwen2.5"},
    **{"gemma2": "gemma-2", "gemma3": "gemma-3", "phi": "phi-3", "phi_3": "phi-3", "phi_35": "phi-3.5"},
    **{"phi4": "phi-4", "phi_4": "phi-4", "deepseek": "deepseek-chat", "deepseek3": "deepseek-v3"},
    **{"deepseekcoder": "deepseek-coder", "inst": "mistral", "cohere": "command-r", "yi": "Yi-34b-chat"},
}


def template(raw: Any) -> str:
    """The template of that name here, if there is one; otherwise the model's own."""
    name = str(raw).lower().replace("-", "").replace(".", "")
    if name in TEMPLATES:
        return f"conv_template: {TEMPLATES[name] or name} (tokenizer is the chat template of the model)"
    return "conv_template: tokenizer (the chat template of the model), or a built-in one, see docs/templates.md"


def rope(raw: Any) -> str:
    """`rope_scaling: linear`, or a mapping with type and factor."""
    if not isinstance(raw, dict):
        return f"rope_scaling_type: {yaml_text(raw)}"
    kind, factor = raw.get("rope_type", raw.get("type", "linear")), raw.get("factor")
    return f"rope_scaling_type: {kind}" + (
        f", rope_scaling_factor: {factor:g}" if isinstance(factor, float | int) else ""
    )


def targets(raw: Any) -> str:
    """The layers to adapt."""
    if str(raw).lower() in ("all", "all-linear", "true"):
        return f"lora_target_modules: {ALL_LINEAR}"
    if str(raw).lower() in ("false", "none"):
        return "leave it out, and name the layers in lora_target_modules"
    return f"lora_target_modules: {yaml_text(raw)}"


def first_weights(raw: Any) -> str:
    """The first weights of an adapter, as peft names them."""
    word = str(raw).lower()
    return "leave it out; the default is that of peft" if word in ("true", "false") else f"lora_init: {word}"


TARGET_NAMES: dict[str, Translate] = {
    **dict.fromkeys(("lora_target_linear", "lora_target", "lora_modules", "target_modules"), targets),
    "lora_target_modules": by_value({"all": f"write {ALL_LINEAR}"}, ""),
}

_ADAPTER = "leave it out: train_lora.py trains an adapter, train.py all weights"
_ONLY_LORA = "only LoRA adapters and their variants (see LoRA options in docs/training.md) are supported"
_SFT = "only supervised fine-tuning is supported"
_ENVIRONMENT = "set the environment variable {} instead"
_BATCH = "the global batch is per_device_train_batch_size x gradient_accumulation_steps x processes; set those"
_ATTENTION = "attn_implementation: NAME chooses the kernel, flash_attn: true asks for FlashAttention 2"
_AUTOMATIC = "leave it out; this is always done"
_TOKENIZER = "leave it out; the tokenizer of the model folder is used"
_MODEL = "leave it out; it is read from config.json in the model folder"
_CONVERSATIONS = "leave it out; rows are conversations, see docs/data.md"
_TOKENS = "add tokens first with `fastchat prepare`"
_SAVED = "weights are always saved as safetensors; leave it out"
_HALF = "leave it out; --bf16 True or --fp16 True is enough"
_FSDP = "write --engine fsdp; its options are keys of --fsdp_config"
_INFERENCE = "it is for inference; leave it out"
_MERGE = "leave it out; `fastchat merge` merges an adapter into its base"
_VISION = "only the language model is trained; leave it out"
_STEPS = "set {0}_strategy: steps and {0}_steps"
_PREPARED = "leave it out; tokens are cached automatically"
_FUSED = "not available; leave it out"
_LAUNCHER = "leave it out; `fastchat train`, deepspeed or torchrun start the processes"
_TRACKER = "set report_to to wandb, tensorboard, mlflow, trackio or none; a tracker reads its own environment variables"
_QUANTIZED = "models that are already quantized cannot be trained; q_lora: true loads the plain model in 4 bits"
_CHUNKED = "leave it out; logits are computed for learned tokens only (chunked_head)"
_PARALLEL = (
    "not available; use --deepspeed with a ZeRO-3 configuration and gradient_checkpointing: true for long dialogues"
)
_PACKING = "leave it out; packing: true is the only setting for packing"
_EXPORT = "leave it out; `fastchat merge` and `fastchat export` write a result in other formats"
_WHOLE = "leave it out; `fastchat train --full_finetuning` trains all weights"
_MODULES = "name the layers in lora_target_modules"

_REASONS: dict[str, str] = {
    # adapters and what is trained
    "use_peft peft finetuning peft_config": _ADAPTER,
    "lora_task_type task_type": "leave it out; it is always CAUSAL_LM",
    "use_llama_pro mixture_of_depths relora_steps relora_prune_ratio use_galore use_apollo use_badam use_adam_mini "
    "use_muon": _ONLY_LORA,
    "lora_alpha_pattern lora_rank_pattern alpha_pattern rank_pattern": "all layers have the same lora_r and lora_alpha",
    "peft_layer_replication peft_layers_pattern layers_pattern peft_ensure_weight_tying ensure_weight_tying "
    "peft_autocast_adapter_dtype lora_embedding_kernel merge_method reinit_weights shrink_embeddings": "not available; "
    "leave it out",
    "lora_fan_in_fan_out pissa_convert loftq loftq_config": "leave it out; peft and lora_init know what is needed",
    "pissa_iter": "lora_init: pissa_niter_N, with that number for N",
    "loraplus_lr_embedding": "leave it out; loraplus_lr_ratio applies to the B matrices only",
    "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules unfrozen_parameters": "parts of a model "
    "cannot be frozen; train an adapter (train_lora.py) or all weights (train.py)",
    "create_new_adapter": "leave it out: lora_weight_path trains that adapter further, without it a new one is made",
    "rl dpo_beta pref_beta pref_loss pref_ftx ref_model reward_model beta trl vllm ebft num_labels "
    "process_reward_model center_rewards_coefficient precompute_ref_log_probs sync_ref_model num_generations": _SFT,
    # quantization
    "load_in_8bit": "8-bit quantization is not available; q_lora: true loads the base in 4 bits",
    "quantization_method quantization_type bnb_4bit_quant_type double_quantization use_bnb_nested_quant "
    "bnb_4bit_quant_storage bnb_4bit_compute_dtype bnb_4bit_use_double_quant": "leave it out; q_lora: true is nf4 "
    "with double quantization",
    "quantization_device_map device_map max_memory gpu_memory_limit lora_on_cpu low_cpu_mem_usage "
    "offload_folder": "leave it out; the launcher and --deepspeed decide where the weights are",
    # model and tokenizer
    "model_type type_of_model model_class base_model_config": _MODEL,
    "tokenizer tokenizer_type tokenizer_config tokenizer_use_fast use_fast_tokenizer "
    "tokenizer_legacy is_llama_derived_model is_mistral_derived_model is_falcon_derived_model is_qwen_derived_model "
    "tokenizer_name tokenizer_name_or_path split_special_tokens": _TOKENIZER,
    "special_tokens tokens add_tokens add_special_tokens resize_vocab resize_token_embeddings_to_32x "
    "new_special_tokens add_special_token "
    "pad_token mean_resizing_embeddings": _TOKENS,
    "model_revision revision_of_model revision": "download that revision first, and give its "
    "folder as model_name_or_path",
    "hf_use_auth_token use_auth_token hf_hub_token ms_hub_token token": _ENVIRONMENT.format("HF_TOKEN"),
    "router_aux_loss_coef": "leave it out; a model with experts adds its own balancing loss",
    "fix_tokenizer use_zoo_tokenizer_patch tokenizer_use_mistral_common tokenizer_revision "
    "tokenizer_save_jinja_files init_special_tokens added_tokens_overrides": _TOKENIZER,
    "processor_type processor_kwargs freeze_mm_modules role_boundaries": _VISION,
    "gptq model_quantization_config model_quantization_config_kwargs llmcompressor quant_config": _QUANTIZED,
    "use_kernels kernel_config use_v1_kernels experts_implementation quantize_moe_experts use_scattermoe use_sonicmoe "
    "moe_grouped_gemm moe_token_dispatcher_type": _FUSED,
    "model_config model_init_kwargs overrides_of_model_config overrides_of_model_kwargs "
    "train_from_scratch": "edit config.json in the model folder",
    "freeze_vision_tower freeze_multi_modal_projector train_mm_proj_only image_max_pixels video_max_pixels "
    "media_dir freeze_language_model": _VISION,
    # data
    "dataset_dir data_dir": "give the files in data_path",
    "shards shards_idx preprocess_shards dataset_shard_num dataset_shard_idx fraction skip": "give that part "
    "in a file of its own",
    "roles_to_train message_field_training_detail": "set train_on; rows can mark single turns (docs/data.md)",
    "drop_system_message split_thinking template_thinking_key input_transform": "change the rows before, for example "
    "with `fastchat data`",
    "instruction_part response_part": "leave it out; what is learned is known from the template (train_on)",
    "raw_text_file stride": "give the text files in data_path",
    "dataset_prepared_path tokenized_path dataset_keep_in_memory preprocessing_batch_size buffer_size streaming "
    "dataset_streaming skip_prepare_dataset preprocessed_path dataset_batch_size": _PREPARED,
    "ignore_pad_token_for_loss shuffle_merged_datasets shuffle_dataset tool_format": _AUTOMATIC,
    "dataset_kwargs formatting_func type ds_type": _CONVERSATIONS,
    "train_on_eos train_on_eot include_start include_end": "leave it out; the end of every learned answer is learned",
    "dataset_config dataset_config_name": "download the dataset first, and give its files in data_path",
    "max_samples max_train_samples max_eval_samples": "shorten the file first, for example with head or "
    "`fastchat data split`",
    "pad_to_sequence_len pad_to_multiple_of padding_free packing_strategy eval_packing eval_sample_packing "
    "sample_packing_eff_est total_num_tokens multipack_real_batches group_by_bucket max_packed_sequence_len "
    "batch_flattening use_packed_sequences": _PACKING,
    "dataset_exact_deduplication": "remove repeated rows from the file first",
    "push_dataset_to_hub": "data is never uploaded; push_to_hub: true uploads the result",
    "default_system default_system_message system_prompt system_message eot_tokens map_eos_token "
    "chat_template_path chat_template_jinja add_eos_token eos_token": "the "
    "template decides this: set conv_template, or your own template with conv_template_file",
    "enable_thinking": "leave it out; rows can say it (enable_thinking, chat_template_kwargs)",
    "min_sample_len": "leave it out; short dialogues are trained on too",
    "mix_strategy": "leave it out; no dialogue is repeated",
    # optimization
    "batch_size global_batch_size total_batch_size train_batch_size": _BATCH,
    "lr_quadratic_warmup": "warmup is linear; set warmup_ratio or warmup_steps",
    "cosine_min_lr_ratio": "lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr_rate: SHARE}",
    "adam_beta3 adam_epsilon2 torchdistx_path lr_div_factor dion_lr dion_momentum": "not available; choose "
    "another optim",
    "cosine_constant_lr_ratio": "not available; set lr_scheduler_type and lr_scheduler_kwargs",
    "loss_type moe_aux_loss_coef": "leave it out; the loss is always cross-entropy over learned tokens",
    "disable_shuffling": "train_sampling_strategy: sequential",
    "pure_bf16 bfloat16 float16": "set dtype for the weights, and bf16: true or fp16: true for the computation",
    "upcast_layernorm upcast_lmhead_output embeddings_skip_upcast": _AUTOMATIC,
    # speed and memory
    "sdp_attention xformers_attention eager_attention s2_attention flex_attention shift_attn xformers "
    "use_xformers": _ATTENTION,
    "liger_rope liger_rms_norm liger_glu_activation liger_fused_linear_cross_entropy "
    "liger_cross_entropy flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp "
    "lora_mlp_kernel lora_qkv_kernel lora_o_kernel use_unsloth unsloth_cross_entropy_loss "
    "cut_cross_entropy chunked_cross_entropy chunked_cross_entropy_num_chunks "
    "cross_entropy_loss_fusion": _CHUNKED,
    "use_unsloth_gc": "gradient_checkpointing: true",
    "disable_gradient_checkpointing": "set gradient_checkpointing: true or false",
    "use_reentrant_gc": "gradient_checkpointing_kwargs: {use_reentrant: true}",
    "activation_offloading": "not available; gradient_checkpointing: true saves activation memory",
    "sequence_parallel_degree sequence_parallel_size context_parallel_size tensor_parallel_size sequence_parallel "
    "heads_k_stride ring_attn_func expert_parallel_size dp_shard_size dp_replicate_size cp_size cp_mode "
    "tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size use_hyper_parallel "
    "virtual_pipeline_model_parallel_size use_megatron_bridge use_mca": _PARALLEL,
    "plugins torchao_optimizers lr_groups embedding_lr embedding_lr_scale loss_watchdog_threshold "
    "loss_watchdog_patience unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o": _FUSED,
    # logging
    "wandb_project": _ENVIRONMENT.format("WANDB_PROJECT"),
    "wandb_entity": _ENVIRONMENT.format("WANDB_ENTITY"),
    "wandb_mode": _ENVIRONMENT.format("WANDB_MODE"),
    "wandb_watch wandb_log_model wandb_run_id use_wandb": "leave it out; report_to: wandb logs the metrics to wandb",
    "mlflow_tracking_uri": _ENVIRONMENT.format("MLFLOW_TRACKING_URI"),
    "mlflow_experiment_name": _ENVIRONMENT.format("MLFLOW_EXPERIMENT_NAME"),
    "use_mlflow comet_project_name use_comet use_swanlab swanlab_project use_tensorboard": "set report_to to wandb, "
    "tensorboard, mlflow, trackio or none",
    "plot_loss print_param_status include_tokens_per_second include_effective_tokens_per_second "
    "compute_accuracy": "leave it out; every run logs its loss and speed to metrics.jsonl",
    "profile_modules enable_torch_profiler gc_steps gc_collect_steps curriculum_sampling trainer_cls deepcompile "
    "layer_offloading save_first_step dynamic_checkpoint diffusion use_onebitllms use_pose": _FUSED,
    "fp32_norms fp32_norm_classes fix_untrained_tokens": _AUTOMATIC,
    "selective_checkpointing": "gradient_checkpointing: true",
    "fused_attn_kernel flex_attn_compile_kwargs flash_optimum sage_attention large_head_attention sdpa_varlen "
    "gemma4_hybrid_attn_impl": _ATTENTION,
    "eval_sequence_len max_prompt_len": "leave it out; model_max_length holds for evaluation too",
    "generate_samples num_generation_samples": "sample_prompts: N shows answers of the model during training",
    "project_name": "set the variable of the tracker, such as WANDB_PROJECT, instead",
    "chat_template_kwargs": "leave it out; rows can have chat_template_kwargs",
    "float32": "set dtype: float32, and leave bf16 and fp16 out",
    "optim_config": "set optim, learning_rate, weight_decay, adam_beta1, adam_beta2 and adam_epsilon",
    "batching_strategy include_tkps": "leave it out",
    # programs that start the processes
    "compute_environment distributed_type num_machines machine_rank same_network main_training_function "
    "main_process_ip main_process_port dist_config master_addr master_port world_size device use_ray gpu "
    "gpu_count node_count ddp": _LAUNCHER,
    "mixed_precision downcast_bf16 load_in_16bit float32_mixed_precision": "set bf16: true, fp16: true or neither",
    # unsloth
    "finetune_language_layers finetune_attention_modules finetune_mlp_modules finetune_last_n_layers": _MODULES,
    "finetune_vision_layers finetune_audio_layers": _VISION,
    "full_finetuning full_finetune": _WHOLE,
    "fast_inference for_inference float8_kv_cache gpu_memory_utilization max_lora_rank disable_log_stats": _INFERENCE,
    "save_method save_model save_gguf push_gguf push_model quantization hub_path save_path": _EXPORT,
    "load_in_fp8 fp8 qat_scheme qat offload_embedding use_exact_model_name": _FUSED,
    # evaluation and checkpoints
    "evals_per_epoch": _STEPS.format("eval"),
    "saves_per_epoch": _STEPS.format("save"),
    "eval_table_size eval_causal_lm_metrics predict_with_generate eval_num_beams eval_on_each_dataset "
    "do_bench_eval": "leave it out; evaluation computes the loss, and eval_generate scores generated answers",
    "early_stopping_steps": "early_stopping_patience counts evaluations",
    "auto_resume_from_checkpoints": "leave it out; a run always resumes from the newest checkpoint in output_dir",
    "save_safetensors": _SAVED,
    "infer_backend infer_dtype use_kv_cache vllm_maxlen max_new_tokens temperature top_p top_k do_sample "
    "repetition_penalty": _INFERENCE,
    "export_dir export_size export_device export_legacy_format export_quantization_bit merge_lora": _MERGE,
    "wandb_api_key wandb_token wandb_key": "leave it out; use `wandb login` or set the variable WANDB_API_KEY",
    "api_key openai_api_key": "leave it out; no remote API is called",
    "strict": "leave it out; unknown settings are always refused",
    # older transformers
    "logging_dir": _ENVIRONMENT.format("TENSORBOARD_LOGGING_DIR"),
    "fsdp_transformer_layer_cls_to_wrap fsdp_min_num_params fsdp_final_state_dict_type fsdp_version fsdp_cpu_offload "
    "fsdp_offload_params fsdp_state_dict_type fsdp_sharding_strategy fsdp_reshard_after_forward fsdp_auto_wrap_policy "
    "fsdp_cpu_ram_efficient_loading fsdp_sync_module_states fsdp_use_orig_params fsdp_backward_prefetch "
    "fsdp_forward_prefetch fsdp_activation_checkpointing qlora_sharded_model_loading": _FSDP,
    "half_precision_backend fp16_backend fp16_opt_level": _HALF,
    "use_mps_device": "leave it out; the device is detected automatically",
    "use_legacy_prediction_loop sharded_ddp mp_parameters ray_scope tpu_num_cores": _FUSED,
    "dispatch_batches split_batches": "leave it out; batches are made by this project's own data loader",
    "jit_mode_eval use_ipex torchdynamo past_index include_inputs_for_metrics": "not available; leave it out",
}
_BY_VALUE: dict[str, Translate] = {
    "eta_min": lambda raw: f"lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {{min_lr: {yaml_text(raw)}}}",
    "adapter": by_value({"qlora": "q_lora: true (with train_lora.py)", "lora": _ADAPTER}, _ONLY_LORA),
    "finetuning_type": by_value(
        {"lora": _ADAPTER, "full": "leave it out, and run fastchat.train.train instead of train_lora"}, _ONLY_LORA
    ),
    "stage": by_value({"sft": f"leave it out; {_SFT}"}, _SFT),
}
_FAMILIES: dict[str, str] = {  # beginnings of names; an exact name above comes first
    "dpo_ kto_ simpo_ orpo_ cpo_ rpo_ ppo_ pref_ grpo_ rl_ reward_ ref_model_": _SFT,
    "galore_ qgalore_ apollo_ badam_ lisa_ relora oft_ kt_ use_kt jagged_restart_": _ONLY_LORA,
    "vllm_ sglang_ gradio_ generation_": _INFERENCE,
    "export_quantization_ export_hub_ export_hf_": _EXPORT,
    "image_ video_ audio_ whisper_": _VISION,
    "swanlab_ comet_ trackio_ mlflow_ otel_ use_otel_ wandb_": _TRACKER,
    "ray_ tpu_ rdzv_": _LAUNCHER,
    "gptq_ awq_": _QUANTIZED,
    "bnb_": "leave it out; q_lora: true is nf4 with double quantization",
    "liger_": _CHUNKED,
    "sample_packing_ multipack_ pretrain_multipack_ streaming_multipack_": _PACKING,
    "megatron_ hyper_parallel_": _PARALLEL,
    "profiler_ fp8_ unsloth_ tiled_mlp pose_ flash_attn_ use_dft_ use_asft_ use_eaft asft_ eaft_": _FUSED,
}
FAMILIES = {start: reason for starts, reason in _FAMILIES.items() for start in starts.split()}

# name -> the reason, or a function that makes it from the value
NO_SETTING: dict[str, str | Translate] = {
    **{name: reason for names, reason in _REASONS.items() for name in names.split()},
    **_BY_VALUE,
}
