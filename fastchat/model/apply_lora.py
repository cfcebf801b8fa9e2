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
    parser = Parser(prog="python -m fastchat.model.apply_lora", description="Merge a LoRA adapter into its base.")
    parser.add_argument("--lora-path", required=True, help="folder of the adapter")
    parser.add_argument("--target-model-path", required=True, help="new folder for the merged model")
    parser.add_argument("--base-model-path", help="base model (default: the one the adapter was trained on)")
    parser.add_argument(
        "--base-weights",
        choices=("full", "dequantised"),
        help="merge into the base's original weights, or into the dequantised nf4 ones (default: as trained)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu, where the whole model must fit)")
    parser.add_argument("--cache-dir", help="where hub downloads are cached")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the base model's own Python code")
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
