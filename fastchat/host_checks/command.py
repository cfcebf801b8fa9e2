"""`fastchat doctor --hosts a,b [RECIPE.yaml]`: whether these hosts can train together."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from fastchat.data.tools.command import EXIT_INTERRUPTED
from fastchat.doctor import Finding
from fastchat.errors import EXIT_DONE, EXIT_RESOURCE, SettingsError, UserError, show, without_secrets
from fastchat.host_checks.checks import CHECKS, WRONG, Session, answering
from fastchat.host_checks.connection import Host, HostFailed, is_here
from fastchat.settings.help import asked_for_help, help_head
from fastchat.settings.options import split_recipe
from fastchat.settings.parsing import to_int
from fastchat.settings.readers import training_reader
from fastchat.settings.recipe_files import find_recipe

_ABOUT = """Check that several hosts can train together: versions, clocks, the port both ways, a shared --output_dir,
the same model, tokenizer and data, and the bandwidth of one all-reduce. It runs on every host, over ssh as `deepspeed
--hostfile` does: without a password, with the same folder and Python environment there.
--hosts NAME,NAME: names or addresses by which the hosts reach each other; the first is the one they meet on.
--port NUMBER: the port that training will use (by default MASTER_PORT, otherwise 29500).
A recipe and training flags say which --output_dir, model and data to compare; others are ignored.
WRONG: it has to be changed before training there (exit code 6). note: it may matter. What to do is at the end."""
_EXAMPLES = (
    "fastchat doctor --hosts node-a,node-b my.yaml",
    "fastchat doctor --hosts 10.0.0.1,10.0.0.2 --port 29500 --output_dir /shared/out --data_path chats.json",
)
_PATHS = {"model_name_or_path": "model", "data_path": "data", "eval_data_path": "evaluation data"}


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    if asked_for_help(words) is not None:
        show("\n".join(help_head("fastchat doctor --hosts NAME,NAME [RECIPE.yaml]", _ABOUT, _EXAMPLES)))
        return EXIT_DONE
    worst = EXIT_DONE
    try:
        for finding in _findings(words):
            show(without_secrets(finding.line))
            worst = EXIT_RESOURCE if finding.state == WRONG else worst
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing of it runs on the hosts any more", file=sys.stderr)
        return EXIT_INTERRUPTED
    return worst


def _findings(words: Sequence[str]) -> Iterator[Finding]:
    hosts, port, rest = _own(words)
    recipe, flags = split_recipe(rest)
    reader = training_reader(True)
    values = (reader.from_yaml(find_recipe(recipe)) if recipe else {}) | reader.from_words(flags)
    paths = [(what, str(path)) for name, what in _PATHS.items() for path in _each(values.get(name))]
    with ExitStack() as stack:
        started = [stack.enter_context(Host(name)) for name in hosts]
        session = Session(started, port, str(values.get("output_dir") or os.getcwd()), paths)
        yield from answering(session)
        if len(session.hosts) < 2:
            return
        for check in CHECKS:
            try:
                yield from check(session)
            except HostFailed as failed:
                what = check.__name__.replace("_", " ")
                yield Finding(
                    WRONG, what, f"{failed.host} stopped answering ({failed})", "look at that host, then try again"
                )
                return


def _each(value: object) -> list[object]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _own(words: Sequence[str]) -> tuple[list[str], int, list[str]]:
    """(hosts, port, the other words)"""
    own = {"hosts": "", "port": os.environ.get("MASTER_PORT", "29500")}
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name.removeprefix("--") not in own or not name.startswith("--"):
            rest.append(word)
        elif equals or left:
            own[name.removeprefix("--")] = value if equals else left.pop(0)
        else:
            raise SettingsError(f"{word} needs a value")
    port = to_int(own["port"], "--port")
    if not 0 < port < 65536:
        raise SettingsError(f"--port {port}: it must be between 1 and 65535")
    return _hosts(own["hosts"]), port, rest


def _hosts(given: str) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    if "" in names or len(names) < 2 or any(name.startswith("-") for name in names):
        raise SettingsError(f"--hosts {given!r}: give two or more host names or addresses, for example --hosts a,b")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SettingsError(f"--hosts {given}: {twice[0]} is in it twice")
    own = [name for name in names if _only_here(name)]
    if own and not all(is_here(name) for name in names):
        raise SettingsError(f"--hosts {given}: {own[0]} is another machine for each host; give a name that all know")
    return names


def _only_here(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
