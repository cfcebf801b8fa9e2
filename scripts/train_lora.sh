#!/usr/bin/env bash
# LoRA fine-tuning with the deepspeed launcher: the common part of train_lora_7b_base.sh, _13b_base.sh and _70b_base.sh.
# Each of them sets the values that differ and sources this file; run one of those.
#
#   MODEL=/models/Llama-2-7b-hf DATA=sharegpt_gpt4.json bash scripts/train_lora_7b_base.sh --num_train_epochs 1
#
# Every value below is an environment variable, and any flag of fastchat/train/train_lora.py may follow: the last one wins.
# Relative paths are relative to the current folder.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# The last value that the flags give for --NAME ("--NAME value" or "--NAME=value"), else the default.
flag_or() {
  local name="$1" value="$2" expect=""
  shift 2
  local argument
  for argument in "$@"; do
    if [ -n "$expect" ]; then
      value="$argument" expect=""
    elif [ "$argument" = "--$name" ]; then
      expect=1
    elif [ "${argument#--"$name"=}" != "$argument" ]; then
      value="${argument#--"$name"=}"
    fi
  done
  printf '%s' "$value"
}

# Whether --plan is among the flags: then nothing is trained, and only the model has to be known.
PLAN=""
case "$(flag_or plan '' "$@" | tr '[:upper:]' '[:lower:]')" in
  false | f | no | n | off | 0) ;;
  *) case " $* " in *" --plan "* | *" --plan="*) PLAN=1 ;; esac ;;
esac

# What to train, on what, to where.
MODEL="$(flag_or model_name_or_path "${MODEL:-}" "$@")"          # folder (or hub name) of the base model
DATA="$(flag_or data_path "${DATA:-}" "$@")"                     # conversations: a file, folder, pattern, hub dataset
EVAL_DATA="$(flag_or eval_data_path "${EVAL_DATA:-}" "$@")"      # held-out conversations; without them no evaluation,
VAL_SET_SIZE="$(flag_or val_set_size "${VAL_SET_SIZE:-0}" "$@")" # unless so many (or this share) of DATA are held out
OUTPUT_DIR="$(flag_or output_dir "${OUTPUT_DIR:-$ROOT/output/$RUN_NAME}" "$@")"

# The hardware. DEVICE=cpu runs NUM_GPUS (default 2) processes on the CPU: slow, but the same code.
DEVICE="${DEVICE:-gpu}"
NUM_GPUS="${NUM_GPUS:-}"
MASTER_PORT="${MASTER_PORT:-29500}"
AUTO="${AUTO:-0}" # 1: a batch that does not fit is replaced by one that does, with more accumulation
DEEPSPEED_CONFIG="${DEEPSPEED_CONFIG:-$ROOT/playground/deepspeed_config_lora_s$ZERO_STAGE.json}"

HUB_NAME='^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$'

# What training accepts as data: an existing path, a pattern, or a dataset of the hub (never named like a file).
is_data() {
  [ -e "$1" ] || [[ "$1" == *[*?[]* ]] || { [[ "$1" =~ $HUB_NAME ]] && ! [[ "$1" =~ \.(json|jsonl|gz|parquet)$ ]]; }
}

# One message that names everything that is missing, before anything slow starts.
preflight() {
  missing=()
  if [ -z "$MODEL" ]; then
    missing+=("MODEL is not set (MODEL=/path/to/base-model or a hub name such as meta-llama/Llama-2-7b-hf)")
  elif [ -d "$MODEL" ]; then
    [ -f "$MODEL/config.json" ] || missing+=("MODEL=$MODEL has no config.json, so it is not a model folder")
  elif ! [[ "$MODEL" =~ $HUB_NAME ]]; then
    missing+=("MODEL=$MODEL does not exist")
  fi
  [ -f "$DEEPSPEED_CONFIG" ] || missing+=("DEEPSPEED_CONFIG=$DEEPSPEED_CONFIG does not exist")
  [[ "$AUTO" =~ ^[01]$ ]] || fail 2 "cannot start: AUTO=$AUTO is neither 0 nor 1"
  [[ "${NUM_GPUS:-1}" =~ ^[1-9][0-9]*$ ]] || fail 2 "cannot start: NUM_GPUS=$NUM_GPUS is not a number of processes"
  [[ "$DEVICE" =~ ^(cpu|gpu)$ ]] || missing+=("DEVICE=$DEVICE is neither gpu nor cpu")
  [ -n "$PLAN" ] || to_train
  [ "${#missing[@]}" -eq 0 ] || fail 2 "cannot start: $(printf '%s; ' "${missing[@]}" | sed 's/; $//')"
}

# What training needs and a plan does not: a plan may be made on a laptop or a login node, for other GPUs.
to_train() {
  local found
  if [ -z "$DATA" ]; then
    missing+=("DATA is not set (DATA=/path/to/conversations.json, for example sharegpt_gpt4.json)")
  elif ! is_data "$DATA"; then
    missing+=("DATA=$DATA does not exist")
  fi
  [ -z "$EVAL_DATA" ] || is_data "$EVAL_DATA" || missing+=("EVAL_DATA=$EVAL_DATA does not exist")
  if [ "$DEVICE" = gpu ]; then
    found="$(num_gpus)"
    if [ "$found" -eq 0 ]; then
      missing+=("no NVIDIA GPU found (DEVICE=cpu runs on the processor)")
    elif [ -n "$NUM_GPUS" ] && [ "$NUM_GPUS" -gt "$found" ]; then
      missing+=("NUM_GPUS=$NUM_GPUS but only $found found")
    fi
  fi
  if grep -q offload "$DEEPSPEED_CONFIG" 2>/dev/null && ! has_compiler; then
    missing+=("no C++ compiler, which DeepSpeed needs for offload (for example: sudo apt install g++)")
  fi
}

# Which processes: all visible GPUs, or the first NUM_GPUS of them.
choose_launcher() {
  launcher=(--master_port "$MASTER_PORT")
  device=() hidden=()
  if [ "$DEVICE" = cpu ]; then
    processes="${NUM_GPUS:-2}"
    launcher+=(--num_gpus "$processes")
    device=(--use_cpu True)
    export DS_ACCELERATOR=cpu
    hidden=(-u CUDA_VISIBLE_DEVICES)
    return
  fi
  processes="${NUM_GPUS:-$(num_gpus)}"
  if [ -n "$NUM_GPUS" ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    # deepspeed ignores CUDA_VISIBLE_DEVICES when --num_gpus is given, so name the GPUs explicitly.
    launcher+=(--include "localhost:$(printf '%s' "$CUDA_VISIBLE_DEVICES" | cut -d, -f"1-$NUM_GPUS")")
    hidden=(-u CUDA_VISIBLE_DEVICES)
  elif [ -n "$NUM_GPUS" ]; then
    launcher+=(--num_gpus "$NUM_GPUS")
  fi
}

# Evaluate and save once per epoch; only save if there is no held-out data.
choose_evaluation() {
  evaluation=()
  [ -z "$EVAL_DATA" ] || evaluation+=(--eval_data_path="$EVAL_DATA")
  [ "$VAL_SET_SIZE" = 0 ] || evaluation+=(--val_set_size "$VAL_SET_SIZE")
  if [ "${#evaluation[@]}" -eq 0 ]; then
    [ -n "$PLAN" ] || say "neither EVAL_DATA nor VAL_SET_SIZE is set: training without evaluation."
    return
  fi
  evaluation+=(--eval_strategy "${EVAL_STRATEGY:-epoch}")
  evaluation+=(--per_device_eval_batch_size "${EVAL_BATCH_SIZE:-$BATCH_SIZE}")
}

# Every flag of the run; flags of the command line come last and win.
choose_flags() {
  flags=(
    --model_name_or_path="$MODEL"
    ${DATA:+--data_path="$DATA"}
    --output_dir="$OUTPUT_DIR"
    --conv_template "${CONV_TEMPLATE:-vicuna_v1.1}"
    --lora_r "$LORA_R"
    --lora_alpha "${LORA_ALPHA:-16}"
    --lora_dropout "${LORA_DROPOUT:-0.05}"
    --lora_target_modules "${LORA_TARGET_MODULES:-q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj}"
    --q_lora "$Q_LORA"
    --deepspeed "$DEEPSPEED_CONFIG"
    --per_device_train_batch_size "$BATCH_SIZE"
    --gradient_accumulation_steps "$GRAD_ACCUM"
    --num_train_epochs "$EPOCHS"
    --learning_rate "${LEARNING_RATE:-3e-4}"
    --lr_scheduler_type "${LR_SCHEDULER:-cosine}"
    --warmup_ratio "${WARMUP_RATIO:-0.03}"
    --weight_decay "${WEIGHT_DECAY:-0}"
    --bf16 "${BF16:-True}"
    --tf32 "${TF32:-True}"
    --flash_attn "${FLASH_ATTN:-True}"
    --model_max_length "${MODEL_MAX_LENGTH:-1024}"
    --gradient_checkpointing "${GRADIENT_CHECKPOINTING:-True}"
    --save_strategy "${SAVE_STRATEGY:-epoch}"
    --logging_steps "${LOGGING_STEPS:-1}"
    ${evaluation[@]+"${evaluation[@]}"} ${device[@]+"${device[@]}"} "$@"
  )
}

# The plan of the run. Flags of the command line win, so --gpus 8 --gpu_memory 80GiB describes another machine.
plan() {
  local here=()
  [ "$processes" = 0 ] || here=(--gpus "$processes")
  python -m fastchat.plan ${here[@]+"${here[@]}"} "${flags[@]}" "$@"
}

# Does the batch fit? Computed before anything is loaded. AUTO=1 takes the largest that does and keeps the global
# batch; without it the run continues with its own. A model that has not been downloaded cannot be planned.
check_memory() {
  local answer warning old_batch old_accumulation batch accumulation gpus
  answer="$(plan --json | python -c '
import json, sys
plan = json.load(sys.stdin)
names = "per_device_train_batch_size gradient_accumulation_steps fitting_microbatch fitting_accumulation gpus"
print(*(plan[name] for name in names.split()))
print(plan["warning"] or "")')" || {
    say "the memory could not be planned (the reason is above)."
    return 0
  }
  { read -r old_batch old_accumulation batch accumulation gpus && IFS= read -r warning; } <<<"$answer" || warning=""
  [ -n "$warning" ] || return 0
  say "$warning"
  if [ "$AUTO" != 1 ]; then
    say "Continuing with a batch of $old_batch; AUTO=1 takes one that fits and keeps the global batch."
  elif [ "$batch" = 0 ]; then
    fail 6 "AUTO=1: no batch fits. 'python -m fastchat.plan --recommend' shows what does on this machine."
  else
    flags+=(--per_device_train_batch_size "$batch" --gradient_accumulation_steps "$accumulation")
    say "AUTO=1: batch $batch x accumulation $accumulation instead of $old_batch x $old_accumulation; the global batch" \
      "stays $((batch * accumulation * gpus))."
  fi
}

preflight
if [ -n "$PLAN" ]; then use_python; else use_env; fi
choose_launcher
choose_evaluation
choose_flags "$@"
if [ -n "$PLAN" ]; then
  [ "$AUTO" != 1 ] || check_memory
  plan
  exit
fi
check_memory

exec env ${hidden[@]+"${hidden[@]}"} deepspeed "${launcher[@]}" "$ROOT/fastchat/train/train_lora.py" "${flags[@]}"
