"""Evaluate a model on mathematics problems: it writes code, the sandbox runs it, and its final answers are compared.

    fastchat eval math MODEL --data_path PROBLEMS.jsonl [--num N] [--output-dir DIR]

MODEL is an adapter, a checkpoint or a model; prompts and the turns with outputs are those of its training. The output
folder gets a transcript of every problem, and an interrupted command continues there.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastchat.bars import bar
from fastchat.conversation import use_template_file
from fastchat.data.rows.sources import find_sources
from fastchat.data.tools.command import Parser, run
from fastchat.data.tools.sandbox import Limits, guarantee
from fastchat.errors import SettingsError, counted, say, show
from fastchat.eval.flags import (
    add_machine_flags,
    add_model_flags,
    add_sampling_flags,
    at_least_one,
    bits_of,
    model_of,
    not_negative,
)

if TYPE_CHECKING:
    from fastchat.eval.loading import Loaded
    from fastchat.eval.mathematics.problems import MathProblem
    from fastchat.eval.mathematics.transcripts import Folder

_BATCHES = 4  # of a group: the unit in which an interrupted evaluation continues


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_evaluate, build_parser(), argv)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        [
            "fastchat eval math out --data-path problems.jsonl --num 200",
            "fastchat eval math out --data-path problems.jsonl --samples 8 --temperature 0.7",
        ],
        prog="fastchat eval math",
        description="Evaluate a model on mathematics problems that it solves with code.",
        epilog="The same command continues an interrupted evaluation. docs/evaluation-math.md: rows and results.",
    )
    add_model_flags(parser, "--model")
    parser.add_argument("--conv-system-msg", help="system message of rows without one (default: the template's own)")
    data = parser.add_argument_group("Data")
    data.add_argument("--data-path", nargs="+", metavar="DATA", help="files, folders or hub datasets with problems")
    data.add_argument("--data-split", default="test", help="split of hub datasets")
    data.add_argument("--on-bad-row", choices=("stop", "skip"), default="stop", help="what to do with a malformed row")
    data.add_argument("--num", type=at_least_one, help="only so many problems, the first ones")
    code = parser.add_argument_group("Code of the model")
    code.add_argument("--rounds", type=at_least_one, default=4, help="runs per problem")
    code.add_argument("--timeout", type=_seconds, default=5.0, help="time limit of each run, in seconds")
    code.add_argument("--workers", type=at_least_one, default=os.cpu_count() or 1, help="runs in parallel")
    answers = parser.add_argument_group("Generated turns")
    add_sampling_flags(answers, "each turn")
    answers.add_argument("--samples", type=at_least_one, default=1, help="attempts per problem; needs a temperature")
    results = parser.add_argument_group("Results")
    results.add_argument("--output-dir", help="folder of transcripts and results (default: eval-math/MODEL/DATA)")
    machine = add_machine_flags(parser)
    machine.add_argument("--batch-size", type=at_least_one, default=16, help="problems generated for at once")
    return parser


def _seconds(text: str) -> float:
    number = not_negative(text)
    if not 0 < number < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and below 3600 seconds")
    return number


def _evaluate(args: argparse.Namespace) -> None:
    _check(args)
    say(guarantee())
    sources = find_sources("--data-path", args.data_path, split=args.data_split, cache_dir=args.cache_dir)
    files = [file for source in sources for file in source.files]
    warnings.simplefilter("ignore", FutureWarning)  # a user cannot do anything about those of the libraries
    from fastchat.eval.mathematics.problems import read_problems

    problems = read_problems(files, num=args.num, system=args.conv_system_msg, on_bad_row=args.on_bad_row)
    say(f"{counted(len(problems), 'problem')} from {', '.join(args.data_path)}")
    template = use_template_file(args.conv_template_file, args.conv_template)
    # Imported only now: torch takes seconds, and what is wrong with the flags or the data is known before.
    from fastchat.eval.mathematics.rounds import check_template
    from fastchat.eval.mathematics.summary import lines_of, results_of

    folder = _open_folder(args, files)
    try:
        if len(folder.records) < len(problems) * args.samples:
            loaded = _load(args, template)
            check_template(problems, loaded.chat_encoder, loaded.context)
            folder.create()  # only now that model and data are known to be usable
            _solve_rest(problems, folder, loaded, args)
        results = results_of(folder.records)
        folder.finish(results)
    finally:
        folder.close()
    for line in lines_of(results):
        show(line)
    show(f"transcripts: {folder.path}")


def _check(args: argparse.Namespace) -> None:
    args.model = model_of(args, "fastchat eval math MODEL --data_path DATA")
    if not args.data_path:
        raise SettingsError("--data_path is missing: which problems should the model solve?")
    bits_of(args)
    if args.samples > 1 and args.temperature < 1e-5:
        raise SettingsError(f"--samples {args.samples}: all would be equal; add --temperature, such as 0.7.")


def _open_folder(args: argparse.Namespace, files: Sequence[str]) -> Folder:
    from fastchat.eval.mathematics.transcripts import Folder

    return Folder(args.output_dir or _default_folder(args), _identity(args, files), _BATCHES * args.batch_size)


def _default_folder(args: argparse.Namespace) -> str:
    """eval-math/MODEL/DATA, by the last parts of their paths."""
    model = Path(args.model).expanduser().resolve().name if Path(args.model).expanduser().exists() else args.model
    data = "-".join(Path(path).name.split(".")[0] for path in args.data_path)
    return str(Path("eval-math") / model.replace("/", "-") / (data or "data"))


def _identity(args: argparse.Namespace, files: Sequence[str]) -> dict[str, Any]:
    """What the results depend on, so that only an equal evaluation is continued."""
    from fastchat.checkpoint.trained_model import find_trained, weights_of
    from fastchat.data.rows.fingerprint import combined, sha256_of
    from fastchat.eval.mathematics import symbolic

    trained = find_trained(args.model, args.base_model_path)
    names = ("num", "on_bad_row", "rounds", "timeout", "max_new_tokens", "batch_size", "temperature", "top_p", "seed")
    more = ("samples", "conv_template", "conv_system_msg", "load_8bit", "load_4bit")
    return {
        "model": args.model,
        "base_model": trained.base if trained.is_adapter else None,
        "weights": weights_of(trained),
        "data": args.data_path,
        "data_sha256": combined([sha256_of(file) for file in files]),
        **{name: getattr(args, name) for name in (*names, *more)},
        "sympy": symbolic.installed(),
    }


def _load(args: argparse.Namespace, template: str | None) -> Loaded:
    from fastchat.eval.loading import load_for_evaluation
    from fastchat.serve.placement import choose_placement

    return load_for_evaluation(
        args.model,
        base_model_path=args.base_model_path,
        conv_template=template,
        placement=choose_placement(args.device, args.num_gpus, args.max_gpu_memory, bits_of(args)),
        cache_dir=args.cache_dir,
        trust_remote_code=args.trust_remote_code,
    )


def _solve_rest(problems: Sequence[MathProblem], folder: Folder, loaded: Loaded, args: argparse.Namespace) -> None:
    """Solve the problems that the folder does not have yet, group by group."""
    from fastchat.eval.generation import Sampling
    from fastchat.eval.mathematics.rounds import Attempt, Method, solve
    from fastchat.eval.mathematics.transcripts import to_record

    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    limits = Limits(timeout=args.timeout)
    method = Method(sampling, args.rounds, args.batch_size, limits, args.workers)
    pairs = [(number, sample) for number in range(len(problems)) for sample in range(args.samples)]
    size = _BATCHES * args.batch_size
    with bar("solving", len(pairs) - len(folder.records), "attempt") as progress:
        for start in range(len(folder.records), len(pairs), size):
            group = pairs[start : start + size]
            attempts = [
                Attempt(problems[number], f"{number} {sample}", problems[number].dialogue) for number, sample in group
            ]
            solve(attempts, loaded, method, progress.advance)
            folder.add(
                [
                    to_record(attempt, start + k, start + k + 1 == len(pairs), {"number": number, "sample": sample})
                    for k, (attempt, (number, sample)) in enumerate(zip(attempts, group, strict=True))
                ]
            )


if __name__ == "__main__":
    sys.exit(main())
