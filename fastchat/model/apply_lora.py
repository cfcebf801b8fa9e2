"""Merge a LoRA adapter into its base model.

    python -m fastchat.model.apply_lora --lora-path ADAPTER --target-model-path OUT [--base-model-path BASE]

Template, RoPE scaling and quantisation come from the adapter's training record. This is only the command, with
upstream's name; `fastchat.checkpoint.merge` does the work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastchat.data.tools.command import Parser, run


def build_parser() -> Parser:
    """The command line."""
    about = "Merge a LoRA adapter into its base: the result is a model that any program can load."
    example = "fastchat merge --lora-path out --target-model-path merged"
    parser = Parser([example], prog="fastchat merge", description=about)
    add = parser.add_argument
    add("--lora-path", required=True, metavar="FOLDER", help="the adapter: the output folder of a run")
    add("--target-model-path", required=True, metavar="FOLDER", help="new folder for the merged model")
    add("--base-model-path", metavar="MODEL", help="base model (default: the one the adapter was trained on)")
    add(
        "--base-weights",
        choices=("full", "dequantised"),
        help="merge into the base's original weights, or into the dequantised nf4 ones (default: as trained)",
    )
    add("--device", default="cpu", metavar="cpu|cuda", help="where to compute; the whole model must fit")
    add("--cache-dir", metavar="FOLDER", help="where hub downloads are cached")
    add("--trust-remote-code", action="store_true", help="run the base model's own Python code")
    return parser


def apply_lora(base_model_path: str | None, target_model_path: str, lora_path: str) -> None:
    """Merge the adapter `lora_path` into its base as the new folder `target_model_path` (upstream's function)."""
    from fastchat.checkpoint.merge import merge_adapter

    merge_adapter(lora_path, target_model_path, base_model_path=base_model_path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_merge, build_parser(), argv)


def _merge(args: argparse.Namespace) -> None:
    from fastchat.checkpoint.merge import merge_adapter

    merge_adapter(
        args.lora_path,
        args.target_model_path,
        base_model_path=args.base_model_path,
        weights=args.base_weights,
        device=args.device,
        cache_dir=args.cache_dir,
        trust_remote_code=args.trust_remote_code,
    )


if __name__ == "__main__":
    sys.exit(main())
