"""Upstream's full fine-tuning with the template of the model's path: `train.py`; --val_set_size 0.02 holds rows out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = str(Path(__file__).resolve().parents[2])
if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = ROOT  # run by path: the package is importable, its modules are not importable as top-level ones

from fastchat.train import train as full  # noqa: E402
from fastchat.train.doors import upstream_attribute, with_template_of_model  # noqa: E402
from fastchat.upstream_names import refuse  # noqa: E402

# Upstream's names for other people's programs: here -> in upstream.py, where the name there differs.
UPSTREAM = {
    **dict.fromkeys(("IGNORE_TOKEN_ID", "ModelArguments", "DataArguments", "TrainingArguments", "rank0_print")),
    **dict.fromkeys(("preprocess", "SupervisedDataset", "LazySupervisedDataset", "safe_save_model_for_hf_trainer")),
    "make_supervised_data_module": "make_split_data_module",
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Trains and ends the process: exit codes are those of `fastchat.errors`."""
    words = sys.argv[1:] if argv is None else argv
    full.main(with_template_of_model(words))


def train() -> NoReturn:
    """What upstream's programs call: `main` with the process's command line."""
    main()


_refused = refuse(__name__)


def __getattr__(name: str) -> Any:
    """Upstream's names for other people's programs, which load transformers."""
    return upstream_attribute(name, UPSTREAM, _refused)


if __name__ == "__main__":
    main()
