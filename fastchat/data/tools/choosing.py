"""The tokenizer and the template chosen on a command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fastchat.conversation import use_template_file
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.properties import prove
from fastchat.data.encoding.supervision import ASSISTANT
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.tools.command import Parser
from fastchat.errors import SettingsError, say
from fastchat.paths import meant_here, model_instead, say_hub_is_asked


def add_model_flags(parser: Parser) -> None:
    """The flags that `load_chat_encoder` reads."""
    add = parser.add_argument
    add(
        "--model-name-or-path",
        required=True,
        metavar="DIR",
        help="folder (or hub name) of the model, for its tokenizer",
    )
    add("--conv-template", metavar="NAME", help="chat template; default vicuna_v1.1 if it suits the model")
    add("--conv-template-file", metavar="FILE", help="my.py or my.yaml with your own templates")
    class_help = "use the ids of the tokenizer's class in transformers, not those of tokenizer.json"
    add("--use-tokenizer-class", action="store_true", help=class_help)
    add("--trust-remote-code", action="store_true", help="allow tokenizer code that comes with the model")


def load_chat_encoder(args: argparse.Namespace, train_on: str = ASSISTANT) -> ChatEncoder:
    """The tokenizer combined with the template. Raises SettingsError; choices made for the user are logged."""
    name = use_template_file(args.conv_template_file, args.conv_template)
    encoder = text_encoder(args.model_name_or_path, args.trust_remote_code, args.use_tokenizer_class)
    chat_encoder = encoder.bind(encoder.choose(name, model_name=args.model_name_or_path), train_on)
    prove(chat_encoder)
    return chat_encoder


def text_encoder(model: str, trust_remote_code: bool, use_class: bool = False) -> TextEncoder:
    """The tokenizer alone. Raises SettingsError."""
    check_model(model)
    encoder, note = open_tokenizer(model, trust_remote_code, use_class)
    if note:
        say(note)
    return encoder


def check_model(name: str) -> None:
    """Check what needs no library; anything else (a name on the hub, say) is left to the tokenizer's loader."""
    path = Path(name)
    if path.is_dir():
        files = os.listdir(path)
        if not any(part in file for file in files for part in ("token", "vocab", "spiece")):
            found = ", ".join(sorted(files)[:5]) or "nothing"
            raise SettingsError(
                f"--model_name_or_path {name}: there is no tokenizer in it (no tokenizer.json); found: {found}."
            )
    elif path.exists():
        raise SettingsError(f"--model_name_or_path {name}: is a file; give the model's directory.")
    elif meant_here(name):
        raise SettingsError(f"--model_name_or_path {name}: there is no such directory.{model_instead(name)}")
    else:
        say_hub_is_asked(name)
