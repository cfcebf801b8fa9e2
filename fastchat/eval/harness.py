"""Hand a model to lm-evaluation-harness, with the template, stop ids, base, RoPE and precision of its training.

    fastchat eval lm-eval MODEL --tasks gsm8k [any flag of lm_eval]

Prints the command that it runs. lm_eval is an extra: `pip install 'fschat[lm-eval]'`.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata

from fastchat.data.tools.command import Parser, guarded
from fastchat.errors import EXIT_DONE, ResourceError, SettingsError, show
from fastchat.streams import kept_output

INSTALL = "pip install 'fschat[lm-eval]'"
OLDEST = (0, 4, 10)  # as in pyproject.toml; earlier ones need transformers 4
MODEL_KIND = "fastchat"  # the name under which harness_model.py registers itself
_OURS = ("--model", "--model_args", "--apply_chat_template")  # flags of lm_eval that this command sets


def build_parser() -> Parser:
    """The flags that are not those of lm_eval."""
    parser = Parser(
        [
            "fastchat eval lm-eval out --tasks gsm8k --limit 100",
            "fastchat eval lm-eval out --tasks mmlu --num_fewshot 5",
        ],
        prog="fastchat eval lm-eval",
        description="Hand a model to lm-evaluation-harness. All other flags are those of lm_eval, such as "
        "--num_fewshot, --limit, --batch_size, --output_path and --log_samples.",
        epilog=f"lm-evaluation-harness is an extra: {INSTALL}",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="an adapter, a result, a checkpoint or a hub name")
    add("--tasks", required=True, help="names of tasks, separated by commas; `lm_eval ls tasks` lists them")
    add("--base-model-path", help="base of the adapter (default: the one it was trained on)")
    add("--conv-template", help="template (default: the one it was trained with)")
    add("--trust-remote-code", action="store_true", help="run the model's own Python code")
    return parser


@kept_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, or that of lm_eval."""
    args, others = build_parser().parse_known_args(argv)
    code = EXIT_DONE

    def work() -> None:
        nonlocal code
        command = harness_command(args, others)
        check_installed()
        show(shlex.join(command))
        code = subprocess.run(command, check=False).returncode

    return guarded(work) or code


def check_installed() -> None:
    """Raises ResourceError if lm-evaluation-harness is missing, or too old for transformers 5."""
    try:
        found = metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise ResourceError(f"lm-evaluation-harness is not installed: {INSTALL}") from None
    if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ResourceError(f"lm-evaluation-harness {found} is too old, {oldest} is needed: {INSTALL}")


def harness_command(args: argparse.Namespace, others: Sequence[str]) -> list[str]:
    """The command that runs lm_eval. `others`: flags that are passed on. Raises SettingsError for one that is ours."""
    taken = [word.split("=")[0] for word in others if word.split("=")[0] in _OURS]
    if taken:
        raise SettingsError(f"{taken[0]} is set by this command; leave it out.")
    given = {
        "path": args.model,
        "base_model_path": args.base_model_path,
        "conv_template": args.conv_template,
        "trust_remote_code": args.trust_remote_code or None,
    }
    arguments = json.dumps({name: value for name, value in given.items() if value is not None})
    return [
        *(sys.executable, "-m", "fastchat.eval.harness_model", "--model", MODEL_KIND),
        *("--model_args", arguments, "--tasks", args.tasks, "--apply_chat_template", *others),
    ]


if __name__ == "__main__":
    sys.exit(main())
