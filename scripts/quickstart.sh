#!/usr/bin/env bash
# From scratch to a fine-tuned chat model that has visibly learned something, with the commands that real runs use.
#
#   bash scripts/quickstart.sh
#
# It downloads no model and no data. Everything it makes is in .cache/quickstart; delete that folder to start over.
#   1. sets up .venv in this checkout, if missing
#   2. pre-trains a tiny Llama (a million parameters) on plain sentences about 242 facts, by full fine-tuning
#   3. trains LoRA on dialogues about 160 of the facts, with the deepspeed launcher: two processes on a CPU, or all GPUs
#   4. lets the base and the tuned model answer the same questions about the other 82 facts
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

WORK="$ROOT/.cache/quickstart"
HERE="$ROOT/playground/quickstart"
# A shorter pre-training only shows that everything runs; see tests/scripts.
BASE_EPOCHS="${BASE_EPOCHS:-6}"
CHAT_EPOCHS="${CHAT_EPOCHS:-3}"
export HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore WANDB_MODE="${WANDB_MODE:-disabled}"

step() { printf '\n== %s\n' "$*"; }

# Pre-train once; the base is kept until the text, the model or this recipe changes.
make_base() {
  local key threads
  key="$BASE_EPOCHS $(cat "$HERE/facts.py" "$HERE/make_data.py" "$ROOT/scripts/quickstart.sh" | cksum)"
  if [ "$(cat "$WORK/base.key" 2>/dev/null)" = "$key" ]; then
    printf 'already there from an earlier run: %s\n' "$WORK/base"
    return
  fi
  rm -f "$WORK/base.key"
  python "$HERE/make_data.py" "$WORK"
  threads=$(($(nproc) < 4 ? $(nproc) : 4))
  printf 'a few minutes on a CPU; its output goes to %s\n' "$WORK/base.log"
  OMP_NUM_THREADS="$threads" CUDA_VISIBLE_DEVICES="$(first_gpu)" python -m fastchat.train.train \
    --model_name_or_path "$WORK/blank" \
    --data_path "$WORK/base.jsonl" \
    --conv_template raw \
    --output_dir "$WORK/base" --overwrite_output_dir True \
    --num_train_epochs "$BASE_EPOCHS" \
    --per_device_train_batch_size 32 \
    --learning_rate 2e-3 --lr_scheduler_type cosine --warmup_ratio 0.03 --adam_beta2 0.98 \
    --model_max_length 256 \
    --logging_steps 50 ${device[@]+"${device[@]}"} >"$WORK/base.log" 2>&1 || {
    local code=$?
    cat "$WORK/base.log" >&2
    return "$code"
  }
  printf '%s\n' "$key" >"$WORK/base.key"
}

first_gpu() {
  local visible="${CUDA_VISIBLE_DEVICES:-0}"
  printf '%s' "${visible%%,*}"
}

fine_tune() {
  local processes="$1"
  deepspeed "${launcher[@]}" "$ROOT/fastchat/train/train_lora.py" \
    --model_name_or_path "$WORK/base" \
    --data_path "$WORK/chat_train.json" \
    --eval_data_path "$WORK/chat_eval.json" --eval_strategy epoch --eval_on_start True \
    --conv_template vicuna_v1.1 \
    --output_dir "$WORK/adapter" --overwrite_output_dir True \
    --lora_r 16 --lora_alpha 16 --lora_dropout 0.05 \
    --num_train_epochs "$CHAT_EPOCHS" \
    --per_device_train_batch_size $((processes < 16 ? 16 / processes : 1)) \
    --learning_rate 3e-3 --lr_scheduler_type cosine --warmup_ratio 0.03 \
    --model_max_length 256 \
    --logging_steps 15 \
    --deepspeed "$ROOT/playground/deepspeed_config_lora_s2.json" ${device[@]+"${device[@]}"}
}

step "1/4 environment"
setup_env
export PATH="$VENV/bin:$PATH"
gpus="$(num_gpus)"
launcher=(--master_port "${MASTER_PORT:-29500}" --log_level error)
if [ "$gpus" -gt 0 ]; then
  processes="$gpus"
  device=()
  printf '%s, GPUs: %s\n' "$VENV" "$gpus"
else
  processes=2
  device=(--use_cpu True)
  launcher+=(--num_gpus 2)
  export DS_ACCELERATOR=cpu
  printf '%s, no NVIDIA GPU: two processes on the CPU\n' "$VENV"
fi

mkdir -p "$WORK"
step "2/4 base model: full fine-tuning of a blank Llama on plain text"
make_base
step "3/4 LoRA with ZeRO-2 on conversations, processes: $processes"
fine_tune "$processes"
step "4/4 the same held-out questions to both"
python "$HERE/compare.py" "$WORK/base" "$WORK/adapter" "$WORK/chat_eval.json"

cat <<END

What to do next
  see what is trained   $VENV/bin/python -m fastchat.data.preview --model_name_or_path $WORK/base --conv_template vicuna_v1.1 --data_path $WORK/chat_train.json
  train a real model    MODEL=/path/to/Llama-2-7b-hf DATA=sharegpt_gpt4.json bash $ROOT/scripts/train_lora_7b_base.sh
END
