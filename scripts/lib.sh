#!/usr/bin/env bash
# Shared by the scripts: the environment in .venv, the machine's resources, and error messages.
# It is sourced, never run. Nothing here changes the current folder, so relative paths keep their meaning.

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$ROOT/.venv"
# Makes the repository importable from any folder, also for a file that is run by its path.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# One thread per process: several processes with a thread per core each would only compete for the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

say() { printf '%s\n' "$*" >&2; }

# fail CODE MESSAGE: one line and the exit code that the training commands use (2 settings, 3 data, 6 resources).
fail() {
  local code="$1"
  shift
  say "$*"
  exit "$code"
}

# How many NVIDIA GPUs this process may use; CUDA_VISIBLE_DEVICES counts.
num_gpus() {
  local all
  all="$( (nvidia-smi -L 2>/dev/null || true) | grep -c '^GPU' || true)"
  if [ "$all" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c '[^[:space:]]' || true
  else
    printf '%s\n' "$all"
  fi
}

# With offload, DeepSpeed compiles its Adam for CPUs when a run starts.
has_compiler() {
  command -v "${CXX:-c++}" >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1
}

require_compiler() {
  has_compiler || fail 6 "no C++ compiler found (c++ or g++): DeepSpeed needs one for offload." \
    "Install one, for example: sudo apt install g++"
}

# The Python that makes .venv: $PYTHON if given, else the first of these that is 3.10 or newer and can make one.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  fail 6 "no Python 3.10 or newer with venv found (looked at ${PYTHON:+$PYTHON, }python3, python3.10 to 3.13)." \
    "Install one, for example: sudo apt install python3-venv, or name one: PYTHON=/path/to/python3.11"
}

require_disk() {
  local needed_gib="$1" free_kib
  free_kib="$(df -Pk "$ROOT" | awk 'NR == 2 { print $4 }')"
  [ "$free_kib" -ge $((needed_gib * 1024 * 1024)) ] ||
    fail 6 "only $((free_kib / 1024 / 1024)) GiB free at $ROOT, and installing needs about $needed_gib GiB."
}

# The environment's key: .venv is updated only when the project's metadata or the kind of machine change.
environment_key() {
  local kind=cpu
  [ "$(num_gpus)" -eq 0 ] || kind=gpu
  printf '%s %s\n' "$kind" "$(sed '/^\[tool\.[^s]/,$d' "$ROOT/pyproject.toml" | cksum)"
}

# Without an NVIDIA GPU, no CUDA packages may be downloaded. These constraints cannot be satisfied, so pip refuses a CUDA
# build of torch when it reads the metadata, before it downloads anything.
no_cuda_constraints() {
  local name
  for name in triton cuda-toolkit cuda-bindings nvidia-{cublas,cudnn,nccl,cuda-runtime,cuda-nvrtc,cusparselt}-cu{11,12,13}; do
    printf '%s==0.0.0.dev0\n' "$name"
  done
}

install_torch_for_cpu() {
  local index=()
  if "$VENV/bin/python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' >/dev/null 2>&1; then
    return # already there, and not a CUDA build
  fi
  [ -z "${TORCH_INDEX_URL:-}" ] || index=(--index-url "$TORCH_INDEX_URL")
  env -u PYTHONPATH "$VENV/bin/python" -m pip install -qq -c "$VENV/no-cuda.txt" ${index[@]+"${index[@]}"} 'torch==2.13.0' </dev/null ||
    fail 6 "this machine has no NVIDIA GPU, and pip found no torch 2.13.0 without CUDA packages (its reasons are above)." \
      "Take the address of the CPU builds from pytorch.org, 'Get started', and run again with TORCH_INDEX_URL=<address>," \
      "or install a CPU build of torch into $VENV yourself."
}

# Make .venv if it is missing or out of date; a second call does nothing.
setup_env() {
  local key python constraints=()
  key="$(environment_key)"
  if [ "$(cat "$VENV/.ready" 2>/dev/null)" = "$key" ]; then
    return
  fi
  python="$(find_python)"
  if [ "${key%% *}" = gpu ]; then require_disk 12; else require_disk 4; fi
  say "setting up $VENV for a ${key%% *} machine with $("$python" --version) (some minutes the first time) ..."
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  rm -f "$VENV/.ready"
  # Since pip 23.0, constraints are checked against the metadata alone.
  "$VENV/bin/python" -c 'import pip, sys; sys.exit(int(pip.__version__.split(".")[0]) < 23)' ||
    env -u PYTHONPATH "$VENV/bin/python" -m pip install -qq 'pip>=23.2' </dev/null
  if [ "${key%% *}" = cpu ]; then
    no_cuda_constraints >"$VENV/no-cuda.txt"
    constraints=(-c "$VENV/no-cuda.txt")
    install_torch_for_cpu
  fi
  (cd "$ROOT" && env -u PYTHONPATH "$VENV/bin/python" -m pip install -qq ${constraints[@]+"${constraints[@]}"} -e '.[dev]' </dev/null) ||
    fail 6 "installing the project into $VENV failed; pip says why above. Fix that, then run the same command again."
  printf '%s\n' "$key" >"$VENV/.ready"
  say "ready: $VENV"
}

# Puts .venv first on PATH if it exists; otherwise uses whatever environment is active.
use_env() {
  if [ -x "$VENV/bin/deepspeed" ]; then
    export PATH="$VENV/bin:$PATH"
  fi
  command -v deepspeed >/dev/null 2>&1 ||
    fail 6 "deepspeed is not installed here; 'bash $ROOT/scripts/quickstart.sh' sets up $VENV, or activate an environment of yours."
}

# Enough for a plan, which needs neither deepspeed nor torch: .venv if it exists, otherwise $PYTHON if given, otherwise
# any Python that is new enough.
use_python() {
  local candidate
  if [ -x "$VENV/bin/python" ]; then
    export PATH="$VENV/bin:$PATH"
    return
  fi
  for candidate in ${PYTHON:+"$PYTHON"} python python3 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      PYTHON="$candidate"
      python() { command "$PYTHON" "$@"; }
      return
    fi
  done
  fail 6 "no Python 3.10 or newer found, which a plan needs (looked at ${PYTHON:+$PYTHON, }python, python3, python3.10 to" \
    "3.13). Name one: PYTHON=/path/to/python3.11"
}
