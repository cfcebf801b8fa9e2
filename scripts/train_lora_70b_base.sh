#!/usr/bin/env bash
# A 70B base model (Llama-2-70B) with LoRA of rank 64 on the unquantised base, and ZeRO-3.
#
#   MODEL=meta-llama/Llama-2-70b-hf DATA=sharegpt_gpt4.json bash scripts/train_lora_70b_base.sh
#   MODEL=... DATA=train.json EVAL_DATA=test.json NUM_GPUS=4 bash scripts/train_lora_70b_base.sh --num_train_epochs 1
#
# The values that all sizes share, and the variable that changes each, are in train_lora.sh.
set -euo pipefail
RUN_NAME=train_lora_70b_base

LORA_R="${LORA_R:-64}"
Q_LORA="${Q_LORA:-False}"     # base in nf4 with double quantisation
ZERO_STAGE="${ZERO_STAGE:-3}" # playground/deepspeed_config_lora_s3.json: optimizer and parameters offloaded to the CPU
BATCH_SIZE="${BATCH_SIZE:-2}" # per GPU
GRAD_ACCUM="${GRAD_ACCUM:-8}"
EPOCHS="${EPOCHS:-5}"

# shellcheck source=scripts/train_lora.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/train_lora.sh"
