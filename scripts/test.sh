#!/usr/bin/env bash
# Run the tests, setting up .venv first if it is missing.
#
#   bash scripts/test.sh                        the default tests: every mechanism, on one case of each kind
#   bash scripts/test.sh --fast                 only the quick ones of these, without launchers
#   bash scripts/test.sh --thorough             every case, and ten times the examples (an hour or more)
#   bash scripts/test.sh tests/data -k mask     any pytest arguments
#
# Two workers share the tests; -n 4 starts four, -n 0 runs them in one process, as --pdb and -p no:xdist do.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

require_compiler
setup_env
export PATH="$VENV/bin:$PATH"

# Tests that launch several processes never run at the same time; tests/conftest.py sets the order.
parallel=(-n 2 --dist loadgroup --no-loadscope-reorder)
arguments=()
previous=""
for argument in "$@"; do
  case "$previous$argument" in
    --pdb | --trace | -pno:xdist | "-p no:xdist") parallel=() ;;
  esac
  if [ "$argument" = --fast ]; then
    arguments+=(-m "not launch and not slow")
  else
    arguments+=("$argument")
  fi
  [ "$argument" = -p ] && previous="-p " || previous=""
done
cd "$ROOT"
exec python -m pytest ${parallel[@]+"${parallel[@]}"} ${arguments[@]+"${arguments[@]}"} </dev/null
