#!/usr/bin/env bash
# A 13B base model (Llama-2-13B) with QLoRA of rank 16 and ZeRO-2. The documents name 8 as the largest batch per GPU.
#
#   MODEL=meta-llama/Llama-2-13b-hf DATA=sharegpt_gpt4.json bash scripts/train_lora_13b_base.sh
#   MODEL=... DATA=train.json EVAL_DATA=test.json NUM_GPUS=4 bash scripts/train_lora_13b_base.sh --num_train_epochs 1
#
# The values that all sizes share, and the variable that changes each, are in train_lora.sh.
set -euo pipefail
RUN_NAME=train_lora_13b_base

LORA_R="${LORA_R:-16}"
Q_LORA="${Q_LORA:-True}"      # base in nf4 with double quantisation
ZERO_STAGE="${ZERO_STAGE:-2}" # playground/deepspeed_config_lora_s2.json
BATCH_SIZE="${BATCH_SIZE:-4}" # per GPU
GRAD_ACCUM="${GRAD_ACCUM:-1}"
EPOCHS="${EPOCHS:-1}"

# shellcheck source=scripts/train_lora.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/train_lora.sh"
