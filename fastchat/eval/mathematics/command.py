"""Evaluate a model on mathematics problems: it writes code, the sandbox runs it, and its final answers are compared.

    fastchat eval math --model MODEL --data_path PROBLEMS.jsonl [--num N] [--output-dir DIR]

MODEL is an adapter, a checkpoint or a model; prompts and the turns with outputs are those of its training. The output
folder gets a transcript of every problem, and an interrupted command continues there.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastchat.conversation import use_template_file
from fastchat.data.rows.sources import find_sources
from fastchat.data.tools.command import Parser, run
from fastchat.data.tools.sandbox import Limits, guarantee
from fastchat.errors import SettingsError, counted, say, show

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
        prog="fastchat eval math",
        description="Evaluate a model on mathematics problems that it solves with code.",
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of an adapter or a model, or a hub name")
    add("--data-path", required=True, nargs="+", metavar="DATA", help="problems with their answers: see docs")
    add("--data-split", default="test", help="of a dataset of the hub (%(default)s)")
    add("--on-bad-row", choices=("stop", "skip"), default="stop", help="what to do with rows that are no problem")
    add("--num", type=_at_least_one, metavar="N", help="only the first N problems")
    add("--output-dir", metavar="DIR", help="where transcripts and results go (default: eval-math/MODEL/DATA)")
    add("--rounds", type=_at_least_one, default=4, metavar="N", help="runs of code per problem (%(default)s)")
    add("--timeout", type=float, default=5.0, metavar="S", help="time limit of each run, in seconds (%(default)s)")
    add(
        "--workers", type=_at_least_one, default=os.cpu_count() or 1, metavar="N", help="runs in parallel (%(default)s)"
    )
    add("--max-new-tokens", type=_at_least_one, default=512, metavar="N", help="of each turn (%(default)s)")
    add(
        "--batch-size", type=_at_least_one, default=16, metavar="N", help="problems generated for at once (%(default)s)"
    )
    add("--temperature", type=float, default=0.0, help="0 always picks the most likely token (%(default)s)")
    add("--top-p", type=float, default=1.0, help="sample only from the most likely tokens (%(default)s)")
    add("--seed", type=int, default=0, help="of the samples (%(default)s)")
    add("--samples", type=_at_least_one, default=1, metavar="N", help="attempts per problem; needs a temperature")
    add("--base-model-path", help="base of the adapter (default: the one it was trained on)")
    add("--conv-template", help="template (default: the one it was trained with)")
    add("--conv-template-file", help="a .py or .yaml file that registers templates")
    add("--conv-system-msg", help="system message of rows without one (default: the template's own)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    add("--num-gpus", type=_at_least_one, help="use so many GPUs (default: all that are needed)")
    add("--max-gpu-memory", help="for weights on each GPU, such as 13GiB (default: 85 %% of it)")
    add("--load-8bit", action="store_true", help="quantise the weights to 8 bits")
    add("--load-4bit", action="store_true", help="quantise the weights to 4 bits (nf4)")
    add("--cache-dir", help="where hub downloads are cached")
    add("--trust-remote-code", action="store_true", help="run the model's own Python code")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


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
    from fastchat.eval.mathematics.summary import lines_of, results_of

    folder = _open_folder(args, files)
    try:
        if len(folder.records) < len(problems) * args.samples:
            _solve_rest(problems, folder, _load(args, template), args)
        results = results_of(folder.records)
        folder.finish(results)
    finally:
        folder.close()
    for line in lines_of(results):
        show(line)
    show(f"transcripts: {folder.path}")


def _check(args: argparse.Namespace) -> None:
    if not 0 < args.timeout < 3600:
        raise SettingsError(f"--timeout {args.timeout:g}: must be above 0 and below 3600 seconds.")
    if args.load_8bit and args.load_4bit:
        raise SettingsError("--load-8bit and --load-4bit: choose one.")
    if args.samples > 1 and not args.temperature > 0:
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
    from fastchat.checkpoint.fingerprint import model_fingerprint
    from fastchat.checkpoint.trained_model import find_trained
    from fastchat.data.rows.fingerprint import combined, sha256_of
    from fastchat.eval.mathematics import symbolic
    from fastchat.model.lora import ADAPTER_WEIGHTS

    trained = find_trained(args.model, args.base_model_path)
    adapter = sha256_of(str(Path(trained.path).expanduser() / ADAPTER_WEIGHTS)) if trained.is_adapter else None
    names = ("num", "on_bad_row", "rounds", "timeout", "max_new_tokens", "batch_size", "temperature", "top_p", "seed")
    more = ("samples", "conv_template", "conv_system_msg", "load_8bit", "load_4bit")
    return {
        "model": args.model,
        "base_model": trained.base if trained.is_adapter else None,
        "weights": [model_fingerprint(trained.base), adapter],
        "data": args.data_path,
        "data_sha256": combined([sha256_of(file) for file in files]),
        **{name: getattr(args, name) for name in (*names, *more)},
        "sympy": symbolic.installed(),
    }


def _load(args: argparse.Namespace, template: str | None) -> Loaded:
    from fastchat.eval.loading import load_for_evaluation
    from fastchat.serve.placement import choose_placement

    bits = 8 if args.load_8bit else 4 if args.load_4bit else None
    return load_for_evaluation(
        args.model,
        base_model_path=args.base_model_path,
        conv_template=template,
        placement=choose_placement(args.device, args.num_gpus, args.max_gpu_memory, bits),
        cache_dir=args.cache_dir,
        trust_remote_code=args.trust_remote_code,
    )


def _solve_rest(problems: Sequence[MathProblem], folder: Folder, loaded: Loaded, args: argparse.Namespace) -> None:
    """Solve the problems that the folder does not have yet, group by group."""
    from fastchat.eval.generation import Sampling
    from fastchat.eval.mathematics.rounds import Attempt, Method, check_template, solve
    from fastchat.eval.mathematics.transcripts import to_record

    check_template(problems, loaded.chat_encoder, loaded.context)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    limits = Limits(timeout=args.timeout)
    method = Method(sampling, args.rounds, args.batch_size, limits, args.workers)
    pairs = [(number, sample) for number in range(len(problems)) for sample in range(args.samples)]
    size = _BATCHES * args.batch_size
    with _bar(len(pairs), len(folder.records)) as advance:
        for start in range(len(folder.records), len(pairs), size):
            group = pairs[start : start + size]
            attempts = [
                Attempt(problems[number], f"{number} {sample}", problems[number].dialogue) for number, sample in group
            ]
            solve(attempts, loaded, method, advance)
            folder.add(
                [
                    to_record(attempt, start + k, start + k + 1 == len(pairs), {"number": number, "sample": sample})
                    for k, (attempt, (number, sample)) in enumerate(zip(attempts, group, strict=True))
                ]
            )


@contextmanager
def _bar(total: int, done: int) -> Iterator[Any]:
    """A progress bar with the time that is left; yields what advances it."""
    from tqdm import tqdm

    with tqdm(total=total, initial=done, desc="solving", unit=" problems", file=sys.stderr, disable=None) as bar:
        yield bar.update


if __name__ == "__main__":
    sys.exit(main())
