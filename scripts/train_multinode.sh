#!/usr/bin/env bash
# Training on several hosts: start this on every one of them, with the same arguments (slurm/, kubernetes/ and skypilot/ do).
#
#   HOSTS=2 MASTER_ADDR=node-a bash scripts/train_multinode.sh my.yaml --output_dir /shared/out
#
# The arguments are those of `fastchat train`: a recipe, then flags. Relative paths are relative to the current folder.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

HOSTS="${HOSTS:-}"                   # how many hosts
MASTER_ADDR="${MASTER_ADDR:-}"       # name or address of one of them, on which all meet
MASTER_PORT="${MASTER_PORT:-29500}"  # a free port there
INTERFACE="${INTERFACE:-}"           # network interface of this host (eth0, ib0); by default NCCL and gloo choose
HOST_RANK="${HOST_RANK:-}"           # 0 on MASTER_ADDR; needed only if that host does not know itself by that name
LOCAL_ADDR="${LOCAL_ADDR:-}"         # this host's address; needed only if its host name means nothing to the others
RUN_ID="${RUN_ID:-fastchat}"         # the same on all hosts, and another one for another run on the same port
NUM_GPUS="${NUM_GPUS:-}"             # processes on this host; by default all visible GPUs (DEVICE=cpu: 1)
MAX_RESTARTS="${MAX_RESTARTS:-0}"    # how often all processes are started again, from the newest checkpoint
DEVICE="${DEVICE:-gpu}"              # cpu: slow, but the same code

NUMBER='^[0-9]+$'
missing=()
[[ "$HOSTS" =~ ^[1-9][0-9]*$ ]] || missing+=("HOSTS=$HOSTS is not a number of hosts (HOSTS=2)")
[ -n "$MASTER_ADDR" ] || missing+=("MASTER_ADDR is not set (the name of the host on which all meet)")
[[ "$MASTER_PORT" =~ $NUMBER ]] || missing+=("MASTER_PORT=$MASTER_PORT is not a number")
[[ "${HOST_RANK:-0}" =~ $NUMBER ]] || missing+=("HOST_RANK=$HOST_RANK is not a number")
[[ "$MAX_RESTARTS" =~ $NUMBER ]] || missing+=("MAX_RESTARTS=$MAX_RESTARTS is not a number")
[[ "$DEVICE" =~ ^(cpu|gpu)$ ]] || missing+=("DEVICE=$DEVICE is neither gpu nor cpu")
[[ "${NUM_GPUS:-1}" =~ ^[1-9][0-9]*$ ]] || missing+=("NUM_GPUS=$NUM_GPUS is not a number of processes")
[ "$#" -gt 0 ] || missing+=("no recipe and no flags are given")
if [ -n "$INTERFACE" ] && [ ! -e "/sys/class/net/$INTERFACE" ]; then
  missing+=("INTERFACE=$INTERFACE does not exist here ($(echo /sys/class/net/* | sed 's,/sys/class/net/,,g'))")
fi
if [ "$DEVICE" = gpu ] && [ "$(num_gpus)" -eq 0 ]; then
  missing+=("no NVIDIA GPU found on $(hostname) (DEVICE=cpu runs on the processor)")
fi
[ "${#missing[@]}" -eq 0 ] || fail 2 "cannot start: $(printf '%s; ' "${missing[@]}" | sed 's/; $//')"

use_env
launcher=(
  --nnodes "$HOSTS"
  --max_restarts "$MAX_RESTARTS"
  --rdzv_backend c10d
  --rdzv_endpoint "$MASTER_ADDR:$MASTER_PORT"
  --rdzv_id "$RUN_ID"
)
if [ -n "$HOST_RANK" ]; then
  if [ "$HOST_RANK" -eq 0 ]; then launcher+=(--rdzv_conf is_host=true); else launcher+=(--rdzv_conf is_host=false); fi
fi
[ -z "$LOCAL_ADDR" ] || launcher+=(--local_addr "$LOCAL_ADDR")
if [ -n "$INTERFACE" ]; then
  export NCCL_SOCKET_IFNAME="$INTERFACE" GLOO_SOCKET_IFNAME="$INTERFACE"
fi
device=()
if [ "$DEVICE" = cpu ]; then
  launcher+=(--nproc_per_node "${NUM_GPUS:-1}")
  device=(--use_cpu True)
  export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=""
else
  launcher+=(--nproc_per_node "${NUM_GPUS:-$(num_gpus)}")
fi
exec torchrun "${launcher[@]}" -m fastchat.launch "$@" ${device[@]+"${device[@]}"}
