"""`fastchat completion bash|zsh|fish`: the completion script of a shell.

It asks `fastchat completion --words ...` what may follow, so it stays right when commands and settings change.

    eval "$(fastchat completion bash)"     # in ~/.bashrc
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastchat.cli import COMMANDS, DATA_COMMANDS
from fastchat.errors import EXIT_DONE, EXIT_SETTINGS, show
from fastchat.settings.help import asked_for_help, help_head
from fastchat.settings.readers import plan_options, preview_options, training_options
from fastchat.settings.recipe_files import RECIPES

# Files are completed by the shell where nothing of ours fits.
SCRIPTS = {
    "bash": """_fastchat() {
  local words
  words="$(fastchat completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)"
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}")
}
complete -o default -F _fastchat fastchat""",
    "zsh": """_fastchat() {
  local -a found
  found=(${(f)"$(fastchat completion --words "${(@)words[2,CURRENT]}" 2>/dev/null)"})
  compadd -a found || _files
}
compdef _fastchat fastchat""",
    "fish": """function __fastchat
  set -l words (commandline -opc) (commandline -ct)
  fastchat completion --words $words[2..-1] 2>/dev/null
end
complete -c fastchat -a '(__fastchat)'""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--words"]:
        show("\n".join(candidates(words[1:])))
        return EXIT_DONE
    if len(words) == 1 and words[0] in SCRIPTS:
        show(SCRIPTS[words[0]])
        return EXIT_DONE
    usage = f"fastchat completion {'|'.join(SCRIPTS)}"
    if asked_for_help(words) is not None:
        about = "Print the completion script of a shell: commands, recipes, settings and their values."
        show("\n".join(help_head(usage, about, ['eval "$(fastchat completion bash)"     # in ~/.bashrc'])))
        return EXIT_DONE
    problem = f"no script for {' '.join(words)!r}" if words else "the name of the shell is missing"
    print(f"error: {problem}; usage: {usage}", file=sys.stderr)
    return EXIT_SETTINGS


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in place of the last of `words`, the words after `fastchat` (the last one may be empty).

    >>> candidates(["ver"])
    ['verify']
    """
    *before, last = words or [""]
    return [word for word in _all(before, last) if word.startswith(last)]


def _all(before: Sequence[str], last: str) -> list[str]:
    if not before:
        return list(COMMANDS)
    command = before[0]
    if command == "data":
        return list(DATA_COMMANDS) if len(before) == 1 else []
    if command == "completion":
        return list(SCRIPTS)
    recipes = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if command == "recipes":
        return ["show", "copy"] if len(before) == 1 else recipes if len(before) == 2 else []
    options = {"train": lambda: training_options(True), "plan": plan_options, "preview": preview_options}.get(command)
    if options is None:
        return []
    if last.startswith("-"):
        return [f"--{option.name}" for option in options() if not option.refused]
    if len(before) == 1:
        return recipes
    choice = next((option for option in options() if f"--{option.name}" == before[-1]), None)
    if choice is None:
        return []
    return ["True", "False"] if choice.is_bool else list(choice.allowed)


if __name__ == "__main__":
    sys.exit(main())
