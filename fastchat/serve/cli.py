"""Chat with an adapter or a model.

    fastchat chat ADAPTER_OR_MODEL

Template, base, RoPE and quantisation are read from the adapter's folder. In a terminal there is a line editor, Markdown
and the commands of `/help`. Piped lines are answered one after the other; `!!reset` starts over, `!!exit` or the end of
input quits, and FastChat's other `!!` commands work too.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fastchat.conversation import Dialogue, use_template_file
from fastchat.data.tools.command import Parser, run
from fastchat.errors import SettingsError

if TYPE_CHECKING:
    from fastchat.serve.chat import Chat
    from fastchat.serve.session import Session


def build_parser() -> Parser:
    """The command line; upstream's flags."""
    about = "Chat with an adapter or a model in the terminal. /help lists the commands of the chat."
    examples = ["fastchat chat out", "fastchat chat out --compare", "fastchat chat out --message 'Hi' --temperature 0"]
    parser = Parser(examples, prog="fastchat chat", description=about)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder of an adapter or a model, or a hub name")
    parser.add_argument("--model-path", metavar="MODEL", help="the same, as a flag")
    base_help = "base of the adapter (default: the one it was trained on)"
    parser.add_argument("--base-model-path", metavar="MODEL", help=base_help)
    parser.add_argument("--compare", action="store_true", help="answer each message also with the base, untrained")
    parser.add_argument("--conv-template", metavar="NAME", help="template (default: the one it was trained with)")
    parser.add_argument("--conv-template-file", metavar="FILE", help="a .py or .yaml file that registers templates")
    parser.add_argument("--conv-system-msg", help="system message (default: the template's own)")
    temperature_help = "0 always picks the most likely token"
    parser.add_argument("--temperature", type=_not_negative, default=0.7, metavar="NUMBER", help=temperature_help)
    longest_help = "maximum number of tokens of an answer"
    parser.add_argument("--max-new-tokens", type=_at_least_one, default=512, metavar="INTEGER", help=longest_help)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (default: cuda if there is a GPU)")
    gpus_help = "use so many GPUs (default: all that are needed)"
    parser.add_argument("--num-gpus", type=_at_least_one, metavar="INTEGER", help=gpus_help)
    memory_help = "for weights on each GPU, such as 13GiB (default: 85 %% of it)"
    parser.add_argument("--max-gpu-memory", metavar="SIZE", help=memory_help)
    parser.add_argument("--load-8bit", action="store_true", help="quantise the weights to 8 bits")
    parser.add_argument("--load-4bit", action="store_true", help="quantise the weights to 4 bits (nf4)")
    parser.add_argument("--message", help="answer this one message and exit")
    parser.add_argument("--cache-dir", metavar="FOLDER", help="where hub downloads are cached")
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
    session = _load(args)
    if args.message is not None:
        for note in session.ask(_readable(args.message), PlainView(len(session.chats) > 1)):
            _tell(f"({note})")
        if session.chat.last is None or session.chat.last.cancelled:
            raise KeyboardInterrupt  # so that a script notices
        return
    from fastchat.serve.markdown_view import on_terminal

    if on_terminal():
        from fastchat.serve import terminal

        terminal.talk(session)
    else:
        talk(session)


def talk(session: Session) -> None:
    """Read lines until the end of input and print the answers, without a terminal."""
    from fastchat.serve.commands import Exit, Front, answer, attempt, command_of, known, run_command

    front = Front(PlainView(len(session.chats) > 1), _tell, _show, _list)
    typed = sys.stdin.isatty()
    while (line := _next_line(typed)) is not None:
        command = command_of(line)
        # A file of messages may have one that begins with a path, or only looks like a command.
        if command and not typed and not (command[0].startswith("!!") and known(command[0])):
            command = None
        try:
            if command:
                attempt(partial(run_command, *command, session, front), _tell)
            elif line.strip():
                attempt(partial(answer, session, line, front), _tell)
        except Exit:
            return


class PlainView:
    """Prints the answers as text."""

    def __init__(self, several: bool = False):
        self._several = several

    def begin(self, label: str, chat: Chat) -> None:
        if self._several:
            print(f"{label}: ", end="", flush=True)

    def piece(self, text: str) -> None:
        print(text, end="", flush=True)

    def end(self) -> None:
        print(flush=True)

    def close(self) -> None:
        pass


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(dialogue: Dialogue) -> None:
    for turn in dialogue.turns:
        _tell(f"{turn.role}: {turn.text}")


def _list(pairs: Sequence[tuple[str, str]]) -> None:
    width = max(len(term) for term, _ in pairs)
    for term, meaning in pairs:
        _tell(f"{term:<{width}}  {meaning}")


def _load(args: argparse.Namespace) -> Session:
    name = use_template_file(args.conv_template_file, args.conv_template)
    path = _model_path(args)
    if args.load_8bit and args.load_4bit:
        raise SettingsError("--load-8bit and --load-4bit: choose one.")
    from fastchat.serve.chat import load_chat
    from fastchat.serve.compare import base_to_load, with_base
    from fastchat.serve.placement import choose_placement
    from fastchat.serve.session import Session

    bits = 8 if args.load_8bit else 4 if args.load_4bit else None
    where = (args.device, args.num_gpus, args.max_gpu_memory, bits)
    options = {"cache_dir": args.cache_dir, "trust_remote_code": args.trust_remote_code}
    base = base_to_load(path, args.base_model_path) if args.compare else None
    warnings.simplefilter("ignore", FutureWarning)  # a user cannot do anything about those of the libraries
    chat = load_chat(
        path,
        base_model_path=None if base else args.base_model_path,
        conv_template=name,
        system=args.conv_system_msg,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        placement=choose_placement(*where),
        **options,
    )
    # The second model finds less free memory than the first.
    return Session(with_base(chat, base, choose_placement(*where), **options) if args.compare else {"": chat})


def _model_path(args: argparse.Namespace) -> str:
    given = [path for path in (args.model, args.model_path) if path is not None]
    if len(given) != 1:
        problem = f"the model is given twice: {' and '.join(given)}" if given else "no model is given"
        raise SettingsError(f"{problem}; usage: fastchat chat MODEL, the folder of a result or a model")
    return given[0]


def _next_line(typed: bool) -> str | None:
    """The next line without its line end, None at the end of input; prompts only in a terminal."""
    if typed:
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
