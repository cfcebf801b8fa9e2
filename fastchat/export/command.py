"""`fastchat export gguf MODEL` and `fastchat export vllm MODEL`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastchat.data.tools.command import Parser, run
from fastchat.errors import EXIT_DONE, EXIT_SETTINGS, nearest, say, show

FORMATS = ("gguf", "vllm")
_HELP = f"""usage: fastchat export {"|".join(FORMATS)} MODEL [--flag value ...]

Write a result for other programs. MODEL is an adapter, a full model or a merged model.

Examples:
  fastchat export gguf out --quant q8_0
  fastchat export vllm out

  gguf  a GGUF file for llama.cpp, compared with the model, and a Modelfile for Ollama
  vllm  the command that serves it with vLLM

fastchat export gguf --help and fastchat export vllm --help show their flags."""


def gguf_parser() -> Parser:
    """The command line of `export gguf`."""
    from fastchat.export.quants import CONVERTED, QUANTIZED

    parser = Parser(
        ["fastchat export gguf out --quant q8_0"],
        prog="fastchat export gguf",
        description="Convert a result with llama.cpp's own converter, read the file back, and compare tensors, "
        "tokenizer, chat template and stops with the model. An adapter is merged first.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of an adapter, a full model or a merged model")
    parser.add_argument("--out", metavar="DIR", help="new folder for the file and its Modelfile (default: MODEL-gguf)")
    parser.add_argument(
        "--quant",
        type=str.lower,
        choices=(*CONVERTED, *QUANTIZED),
        default="q8_0",
        help="type of the weights; those after q8_0 need llama.cpp's llama-quantize",
    )
    parser.add_argument("--llama_cpp", metavar="DIR", help="folder of llama.cpp (default: $LLAMA_CPP, then PATH)")
    parser.add_argument(
        "--download",
        action="store_true",
        help="if no converter is found, take it from the source package of llama-cpp-python (77 MB, kept in the cache)",
    )
    parser.add_argument("--base_model_path", help="base model of an adapter (default: the one it was trained on)")
    return parser


def vllm_parser() -> Parser:
    """The command line of `export vllm`."""
    parser = Parser(
        ["fastchat export vllm out"],
        prog="fastchat export vllm",
        description="Print the command that serves a result with vLLM. An adapter is served on its base, unless vLLM "
        "cannot apply it: then the merge comes first.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of an adapter, a full model or a merged model")
    parser.add_argument(
        "--write", metavar="DIR", help="also write the command and the generation config into this folder"
    )
    parser.add_argument("--base_model_path", help="base model of an adapter (default: the one it was trained on)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        show(_HELP)
        return EXIT_DONE
    if words[0] == "gguf":
        return run(_gguf, gguf_parser(), words[1:])
    if words[0] == "vllm":
        return run(_vllm, vllm_parser(), words[1:])
    close = nearest(words[0], FORMATS)
    hint = f"did you mean {close[0]}?" if close else f"it can be {' or '.join(FORMATS)}"
    print(f"error: fastchat export: no format {words[0]!r}; {hint}", file=sys.stderr)
    return EXIT_SETTINGS


def _gguf(args: argparse.Namespace) -> None:
    from fastchat.export.gguf import export_gguf, next_steps

    done = export_gguf(
        args.model,
        args.out,
        quant=args.quant,
        llama_cpp=args.llama_cpp,
        download=args.download,
        base_model_path=args.base_model_path,
    )
    show(str(done.file))
    say(next_steps(done))


def _vllm(args: argparse.Namespace) -> None:
    from fastchat.export.vllm import commands

    for line in commands(args.model, write=args.write, base_model_path=args.base_model_path):
        show(line)


if __name__ == "__main__":
    sys.exit(main())
