"""Serve an adapter or a model as an OpenAI-compatible API.

    fastchat serve ADAPTER_OR_MODEL
    python -m fastchat.serve.openai_api_server ADAPTER_OR_MODEL
    fastchat serve ADAPTER_OR_MODEL --web      # and a page to chat in the browser

Requests are rendered and encoded as in training, and vLLM, where it is installed, or transformers gets token ids. The
server listens on this machine only, unless --host says otherwise; then a key is needed.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastchat.conversation import use_template_file
from fastchat.data.tools.command import Parser, run
from fastchat.errors import SettingsError, hide, show

if TYPE_CHECKING:
    from fastchat.serve.api.served import ServedModel

KEY_VARIABLE = "FASTCHAT_API_KEY"
SHORTEST_KEY = 8
BASE = "base"
_NEEDED = ("fastapi", "uvicorn")
_NEEDED_BY_PAGE = ("gradio",)


def build_parser() -> Parser:
    """The command line."""
    about = "Serve an adapter or a model as an OpenAI-compatible API."
    examples = ["fastchat serve out", "fastchat serve out --compare --port 8001"]
    parser = Parser(examples, prog="fastchat serve", description=about)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the same as --model-path")
    parser.add_argument("--model-path", help="folder of an adapter or a model, or a hub name")
    parser.add_argument("--model-name", help="name in requests (default: the last part of the model's path)")
    parser.add_argument("--compare", action="store_true", help=f"serve also the untrained base, as {BASE!r}")
    parser.add_argument("--web", action="store_true", help="serve also a page to chat in the browser")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=_port, default=8000, help="0 for any free one")
    parser.add_argument("--api-key", help=f"key that requests must have (default: the variable {KEY_VARIABLE})")
    parser.add_argument("--max-requests", type=_at_least_one, default=32, help="answers at once")
    parser.add_argument("--max-waiting", type=_not_negative, default=64, help="waiting requests")
    parser.add_argument(
        "--engine", choices=("auto", "vllm", "transformers"), default="auto", help="auto: vllm where it is installed"
    )
    parser.add_argument("--base-model-path", help="base of the adapter (default: the one it was trained on)")
    parser.add_argument("--conv-template", help="template (default: the one it was trained with)")
    parser.add_argument("--conv-template-file", help="a .py or .yaml file that registers templates")
    parser.add_argument("--conv-system-msg", help="system message of requests without one (default: the template's)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    parser.add_argument("--num-gpus", type=_at_least_one, help="use so many GPUs (default: all that are needed)")
    parser.add_argument("--max-gpu-memory", help="for weights on each GPU, such as 13GiB (default: 85 %% of it)")
    parser.add_argument("--load-8bit", action="store_true", help="quantise the weights to 8 bits")
    parser.add_argument("--load-4bit", action="store_true", help="quantise the weights to 4 bits (nf4)")
    parser.add_argument("--cache-dir", help="where hub downloads are cached")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own Python code")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_serve, build_parser(), argv)


def _serve(args: argparse.Namespace) -> None:
    key = api_key(args)
    check_installed(args.web)
    from fastchat.serve.api.server import address_of, listen, run_server

    sock = listen(args.host, args.port)  # before the model is loaded: a port that is taken is found out at once
    try:
        models = load_models(args)
        from fastchat.serve.api.app import Limits, create_app

        app: Any = create_app(models, Limits(answers=args.max_requests, waiting=args.max_waiting), key)
        if args.web:
            from fastchat.serve.web.serving import with_page

            app = with_page(app, models, address_of(sock), key, KEY_VARIABLE)
        engines = [model.engine for model in models.values()]
        run_server(app, sock, engines, lambda: greet(models, sock, key is not None, args.web))
    finally:
        sock.close()


def api_key(args: argparse.Namespace) -> str | None:
    """The key of the command line or the environment. Raises SettingsError if it is needed and missing, or weak."""
    key = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE)
    if key is None:
        if not _is_loopback(args.host):
            raise SettingsError(
                f"--host {args.host} can be reached from other machines: pass --api-key, or set {KEY_VARIABLE}."
            )
        return None
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"--api-key: at least {SHORTEST_KEY} printable ASCII characters without spaces are needed.")
    hide(key)
    return key


def check_installed(web: bool) -> None:
    """Raise SettingsError unless the packages of the extra `serve`, or `web` for the page, are there."""
    missing = [name for name in (*_NEEDED, *(_NEEDED_BY_PAGE if web else ())) if find_spec(name) is None]
    if missing:
        extra = "web" if web else "serve"
        raise SettingsError(f"{' and '.join(missing)} not installed: pip install 'fschat[{extra}]'")


def load_models(args: argparse.Namespace) -> dict[str, ServedModel]:
    """The models to serve by name: the model and, with --compare, its base. Raises UserError."""
    path = _model_path(args)
    if args.load_8bit and args.load_4bit:
        raise SettingsError("--load-8bit and --load-4bit: choose one.")
    template = use_template_file(args.conv_template_file, args.conv_template)
    name = args.model_name or Path(path.rstrip("/")).expanduser().name or path
    if args.compare and name == BASE:
        raise SettingsError(f"--compare serves the base as {BASE!r}: pass another --model-name.")
    from fastchat.serve.loading import load_served

    warnings.simplefilter("ignore", FutureWarning)  # a user cannot do anything about those of the libraries
    return load_served(args, path, name, template, BASE if args.compare else None)


def greet(models: dict[str, ServedModel], sock: Any, has_key: bool, web: bool = False) -> None:
    """Say what is served where, and how to try it."""
    from fastchat.serve.api.server import address_of

    address = address_of(sock)
    first = next(iter(models.values()))
    key = f" -H 'Authorization: Bearer '\"${KEY_VARIABLE}\"" if has_key else ""
    body = f'{{"model": "{first.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    limit = f"{first.engine.limit:,} tokens" if first.engine.limit else "no limit"
    lines = [
        *first.about,
        ("Served as", " and ".join(models)),
        ("Template", first.chat_encoder.template.name),
        ("Engine", first.engine.name),
        ("Context", limit),
        ("Address", f"{address}/v1"),
        *([("Page", f"{address}/" + (" (any name; the password is the key)" if has_key else ""))] if web else []),
        ("Try it", f"curl {address}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"),
        ("", "Ctrl-C stops the server."),
    ]
    show("\n".join(f"{what:<10} {value}".rstrip() for what, value in lines))


def _model_path(args: argparse.Namespace) -> str:
    given = [path for path in (args.model, args.model_path) if path is not None]
    if len(given) != 1:
        problem = f"the model is given twice: {' and '.join(given)}" if given else "no model is given"
        raise SettingsError(f"{problem}; usage: fastchat serve MODEL")
    return given[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port, a whole number from 0 to 65535")
    return int(text)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _not_negative(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
