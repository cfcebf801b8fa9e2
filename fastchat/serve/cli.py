"""Chat in the terminal with an adapter or a model.

    python -m fastchat.serve.cli --model-path ADAPTER_OR_MODEL

Template, base, RoPE and quantisation are read from the adapter's folder. `!!reset` starts a new conversation, `!!exit`
or the end of input quits. Piped lines are answered one after the other.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastchat.conversation import use_template_file
from fastchat.data.tools.command import Parser, run
from fastchat.errors import UserError

if TYPE_CHECKING:
    from fastchat.serve.chat import Chat


def build_parser() -> Parser:
    """The command line; upstream's flags."""
    parser = Parser(prog="python -m fastchat.serve.cli", description="Chat in the terminal.")
    parser.add_argument("--model-path", required=True, help="folder of an adapter or a model, or a hub name")
    parser.add_argument("--base-model-path", help="base of the adapter (default: the one it was trained on)")
    parser.add_argument("--conv-template", help="template (default: the one it was trained with)")
    parser.add_argument("--conv-template-file", help="a .py or .yaml file that registers templates")
    parser.add_argument("--conv-system-msg", help="system message (default: the template's own)")
    parser.add_argument("--temperature", type=_not_negative, default=0.7, help="0 always picks the most likely token")
    parser.add_argument("--max-new-tokens", type=_at_least_one, default=512)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    parser.add_argument("--message", help="answer this one message and exit")
    parser.add_argument("--cache-dir", help="where hub downloads are cached")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own Python code")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_chat, build_parser(), argv)


def _chat(args: argparse.Namespace) -> None:
    chat = _load(args)
    if args.message is not None:
        _answer(chat, [{"role": "user", "content": _readable(args.message)}])
    else:
        talk(chat)


def talk(chat: Chat) -> None:
    """Read lines until the end of input and print the answers; `!!reset` starts a new conversation."""
    messages: list[dict[str, str]] = []
    while (line := _next_line()) is not None:
        if line == "!!exit":
            return
        if line == "!!reset":
            messages = []
            print("(new conversation)", file=sys.stderr)
        elif line.strip():
            asked = [*messages, {"role": "user", "content": line}]
            try:
                messages = [*asked, {"role": "assistant", "content": _answer(chat, asked)}]
            except UserError as problem:
                print(f"error: {problem}", file=sys.stderr)
            except KeyboardInterrupt:
                print("(stopped)", file=sys.stderr)


def _load(args: argparse.Namespace) -> Chat:
    name = use_template_file(args.conv_template_file, args.conv_template)
    from fastchat.serve.chat import load_chat

    return load_chat(
        args.model_path,
        base_model_path=args.base_model_path,
        conv_template=name,
        system=args.conv_system_msg,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        device=args.device,
        cache_dir=args.cache_dir,
        trust_remote_code=args.trust_remote_code,
    )


def _answer(chat: Chat, messages: list[dict[str, str]]) -> str:
    text = chat.reply(messages, on_text=lambda piece: print(piece, end="", flush=True))
    print(flush=True)
    return text


def _next_line() -> str | None:
    """The next line without its line end, None at the end of input; prompts only in a terminal."""
    if sys.stdin.isatty():
        try:
            return _readable(input("> "))
        except (EOFError, KeyboardInterrupt):
            return None
    line = sys.stdin.readline()
    return _readable(line.removesuffix("\n").removesuffix("\r")) if line else None


def __getattr__(name: str) -> Any:
    """Upstream's SimpleChatIO, RichChatIO and ProgrammaticChatIO; importing them loads torch."""
    if name in ("SimpleChatIO", "RichChatIO", "ProgrammaticChatIO"):
        from fastchat.serve import chat_io

        return getattr(chat_io, name)
    raise AttributeError(f"{__name__} has no attribute {name!r}")


def _readable(text: str) -> str:
    """Python keeps bytes that are not UTF-8 as lone surrogates, which no tokenizer accepts: they become a ?, with a
    message."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    if clean != text:
        print("(bytes that are not UTF-8 were replaced by ?)", file=sys.stderr)
    return clean


if __name__ == "__main__":
    sys.exit(main())
