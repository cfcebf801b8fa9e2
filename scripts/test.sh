#!/usr/bin/env bash
# Run the tests, setting up .venv first if it is missing.
#
#   bash scripts/test.sh                        everything
#   bash scripts/test.sh --fast                 only what needs no launcher and little time
#   bash scripts/test.sh tests/data -k mask     any pytest arguments
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

require_compiler
setup_env
export PATH="$VENV/bin:$PATH"

arguments=()
for argument in "$@"; do
  if [ "$argument" = --fast ]; then
    arguments+=(-m "not launch and not slow")
  else
    arguments+=("$argument")
  fi
done
cd "$ROOT"
exec python -m pytest ${arguments[@]+"${arguments[@]}"} </dev/null
