#!/usr/bin/env bash
# A 7B base model (Llama-2-7B) with QLoRA of rank 8 and ZeRO-2.
#
#   MODEL=meta-llama/Llama-2-7b-hf DATA=sharegpt_gpt4.json bash scripts/train_lora_7b_base.sh
#   MODEL=... DATA=train.json EVAL_DATA=test.json NUM_GPUS=4 bash scripts/train_lora_7b_base.sh --num_train_epochs 1
#
# The values that all sizes share, and the variable that changes each, are in train_lora.sh.
set -euo pipefail
RUN_NAME=train_lora_7b_base

LORA_R="${LORA_R:-8}"
Q_LORA="${Q_LORA:-True}"      # base in nf4 with double quantisation
ZERO_STAGE="${ZERO_STAGE:-2}" # playground/deepspeed_config_lora_s2.json
BATCH_SIZE="${BATCH_SIZE:-16}" # per GPU
GRAD_ACCUM="${GRAD_ACCUM:-2}"
EPOCHS="${EPOCHS:-10}"

# shellcheck source=scripts/train_lora.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/train_lora.sh"
