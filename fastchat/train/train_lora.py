"""LoRA fine-tuning, what people run:

    deepspeed fastchat/train/train_lora.py recipe.yaml --deepspeed playground/deepspeed_config_lora_s2.json
    torchrun --nproc_per_node 2 -m fastchat.train.train_lora recipe.yaml --learning_rate 1e-4
    python -m fastchat.train.train_lora recipe.yaml

All three take the same flags and give the same result. `--help` lists the settings, `--plan` only says what memory
they need.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = str(Path(__file__).resolve().parents[2])
if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = ROOT  # run by path: the package is importable, its modules are not importable as top-level ones

from fastchat.train.doors import refuse_replaced, upstream_attribute  # noqa: E402
from fastchat.train.imports import uncollected_imports  # noqa: E402
from fastchat.train.planning import end_if_only_planned  # noqa: E402
from fastchat.train.settings import find_output_dir, parse  # noqa: E402
from fastchat.train.status import RunStatus, run_main  # noqa: E402
from fastchat.upstream_names import refuse  # noqa: E402

# Upstream's names for other people's programs: here -> in upstream.py, where the name there differs.
UPSTREAM = {
    **dict.fromkeys(("ModelArguments", "DataArguments", "LoraArguments", "make_supervised_data_module")),
    **dict.fromkeys(("maybe_zero_3", "get_peft_state_maybe_zero_3")),
    "TrainingArguments": "LoraTrainingArguments",
}


def run(words: Sequence[str], status: RunStatus) -> None:
    """Trains with the given command line. Raises UserErrors."""
    with uncollected_imports():
        settings = parse(words, lora=True)
        from fastchat.train.pushing import checked_push
        from fastchat.train.recipe import train

    upload = checked_push(settings.values)
    train(settings, status)
    upload(status)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Trains and ends the process: exit codes are those of `fastchat.errors`."""
    words = end_if_only_planned(sys.argv[1:] if argv is None else argv, lora=True)
    run_main(lambda status: run(words, status), find_output_dir(words))


def train() -> NoReturn:
    """What upstream's programs call: `main` with the process's command line."""
    refuse_replaced(__name__, UPSTREAM)
    main()


_refused = refuse(__name__)


def __getattr__(name: str) -> Any:
    """Upstream's names for other people's programs, which load transformers."""
    return upstream_attribute(name, UPSTREAM, _refused)


if __name__ == "__main__":
    main()
