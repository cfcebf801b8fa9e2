"""Show what a run would train on, before it runs.

    python -m fastchat.data.preview [RECIPE.yaml] --model_name_or_path DIR --conv_template NAME --data_path DATA
        [--model_max_length N] [--num 3] [--output OUT.jsonl] [--html report.html]

Shows the first dialogues with their supervised tokens in green (in [[brackets]] without colour), and the counts of
everything dropped, cut or changed. With `--output` it writes one JSON line per row, in input order; a row that is
several examples has one line for each, all with its index:

    {"index": 0, "input_ids": [...], "labels": [...], "dropped": null, "truncated_tokens": 0}

With `--html` it writes a page that shows every token with its role, id and label, and why it is supervised or not.

The ids are those of the training run. No torch is imported where the raw `tokenizer.json` provably gives the same ids.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fastchat.bars import bar
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import Example, tokenize_dialogues
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.records import Record, Records
from fastchat.data.rows.sources import Source, find_sources
from fastchat.data.rows.writing import StagedFile, check_output
from fastchat.data.tokens.counts import count_example, hint_at_causes, plain_line, refused_line, table
from fastchat.data.tokens.dataset import ChatDataset
from fastchat.data.tokens.early import EARLY
from fastchat.data.tokens.early_request import start_tokenising
from fastchat.data.tokens.lost import Lost
from fastchat.data.tokens.mixing import check_proportions, held_out_line, num_held_out, proportional, proportions_line
from fastchat.data.tokens.prepare import NothingToLearn, TokenSettings, get_or_create_tokens
from fastchat.data.tokens.store import usable
from fastchat.data.tools.choosing import check_model, load_chat_encoder
from fastchat.data.tools.command import guarded
from fastchat.data.view.html_report import HtmlReport
from fastchat.data.view.showing import shown
from fastchat.data.view.terminal import legend, wants_colour
from fastchat.errors import EXIT_DONE, DataError, SettingsError, counted, say, show
from fastchat.one_thread import NO_TOKENIZER_THREADS, environment, may_fork
from fastchat.settings.help import asked_for_help, help_head, help_text
from fastchat.settings.options import Option, check_ranges, check_refused, options_of, split_recipe
from fastchat.settings.parsing import to_shares
from fastchat.settings.readers import preview_options, preview_reader
from fastchat.settings.recipe_files import find_recipe
from fastchat.settings.tool_arguments import PreviewArguments
from fastchat.streams import kept_output

_READ = (  # the training settings that it reads; the others are accepted, so that every recipe works
    *("model_name_or_path", "conv_template", "conv_template_file", "use_tokenizer_class", "trust_remote_code"),
    *("data_path", "data_split", "data_revision", "data_proportions", "val_set_size", "model_max_length", "overlong"),
    *("on_bad_row", "train_on", "data_columns", "data_roles"),
)
_HEAD = help_head(
    "fastchat preview [RECIPE.yaml] [--setting value ...]",
    "Show which tokens a run would train on, and count what it would drop, cut or change.\n"
    "The settings are those of training; a recipe works here too. Nothing is trained.",
    (
        "fastchat preview my.yaml --data_path chats.json --html report.html",
        "fastchat preview --model_name_or_path M --conv_template vicuna_v1.1 --data_path chats.json --num 1",
    ),
)
_BATCH = 256  # rows in memory at a time


@kept_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    asked = asked_for_help(words)
    if asked is not None:
        show(_help(asked))
        return EXIT_DONE
    return guarded(lambda: preview(read(words)))


@dataclass
class _Counts:
    """What there is to say about all rows.

    counts: see counts.py. gains: see Lost. sizes: the dialogues trained on of each source. lines: said when all rows
    are counted, before the table.
    """

    counts: Mapping[str, int]
    gains: Sequence[tuple[int, int]]
    sizes: list[int]
    lines: Sequence[str] = ()


def preview(args: argparse.Namespace) -> None:
    """Show the first rows, then count all: through the token cache, or for `--output` and `--html` here, one batch of
    rows at a time. Raises UserError."""
    _check(args)
    writes = args.output is not None or args.html is not None
    with nullcontext() if writes else _workers_ready(args):
        chat_encoder = load_chat_encoder(args, args.train_on)
        sources = find_sources("--data_path", args.data_path, split=args.data_split, revision=args.data_revision)
        files = [file for source in sources for file in source.files]
        _check_outputs(args, files)
        report = HtmlReport(chat_encoder, args.model_max_length) if args.html else None
        screen = _Screen(args, chat_encoder)
        if writes:
            found = _read_all(args, sources, chat_encoder, screen, report)
        else:
            found = _from_cache(args, sources, chat_encoder, screen)
    for line in found.lines:
        say(line)
    if screen.num_shown:
        show(f"{legend(screen.colour)}\n")
    lost = Lost.of(found.counts, found.gains)
    show(table(found.counts, lost, args.model_max_length))
    if lost.loud and (warning := lost.line(args.model_max_length)):
        say(f"{warning}. For the memory this needs, add --plan to the training command")
    _print_choice(args, sources, found.sizes)
    if report and args.html:
        say(report.write(args.html, found.counts, _about(args, chat_encoder), lost))
    if not found.counts.get("supervised_tokens"):
        cause = hint_at_causes(Counter(found.counts), args.model_max_length)
        raise DataError(f"no learned tokens in the data: training would stop. {cause}")


@contextmanager
def _workers_ready(args: argparse.Namespace) -> Iterator[None]:
    """So that all rows are tokenised soon: this process stays with one thread and can copy itself, or, where it has
    others already, a new one begins at once."""
    if may_fork():
        with environment(NO_TOKENIZER_THREADS):
            yield
        return
    start_tokenising(vars(args), evaluates=False)
    try:
        yield
    finally:
        EARLY.stop()


class _Screen:
    """Shows the examples of the first `--num` rows."""

    def __init__(self, args: argparse.Namespace, chat_encoder: ChatEncoder):
        self.args, self.chat_encoder = args, chat_encoder
        self.colour = wants_colour(sys.stdout)
        self.num_shown, self._last = 0, -1  # rows, with all their examples

    def add(self, record: Record, example: Example) -> None:
        """The next example."""
        if example.dropped is None and (self.num_shown < self.args.num or record.index == self._last):
            self.num_shown += record.index != self._last
            self._last = record.index
            text = shown(record, example, self.chat_encoder, self.args.model_max_length, colour=self.colour)
            show(f"{text}\n")

    def is_full(self, example: Example) -> bool:
        """Whether nothing after this example will be shown."""
        return self.num_shown >= self.args.num and example.is_last


def _records(
    args: argparse.Namespace, sources: Sequence[Source], chat_encoder: ChatEncoder, beginning: bool
) -> Records:
    template = chat_encoder.template
    return Records(
        [file for source in sources for file in source.files],
        on_bad_row=args.on_bad_row,
        reasoning=template.shows_reasoning,
        calls=template.shows_calls,
        reads_argument=template.reads_argument,
        columns=Columns(args.data_columns, args.data_roles),
        beginning=beginning,
    )


def _from_cache(
    args: argparse.Namespace, sources: Sequence[Source], chat_encoder: ChatEncoder, screen: _Screen
) -> _Counts:
    """The first rows are shown at once; the counts of all are those of the tokens of a training."""
    if args.num:
        records = _records(args, sources, chat_encoder, beginning=True)
        for record, example in _examples(records, chat_encoder, args, at_once=args.num):
            screen.add(record, example)
            if screen.is_full(example):
                break
    how = TokenSettings(
        max_length=args.model_max_length,
        overlong=args.overlong,
        on_bad_row=args.on_bad_row,
        columns=Columns(args.data_columns, args.data_roles),
        workers=args.preprocessing_num_workers,
        overwrite=args.overwrite_cache,
    )
    try:
        made = get_or_create_tokens("train", sources, chat_encoder, how)
    except NothingToLearn as error:
        return _Counts(error.counts, error.gains, [0] * len(sources))
    store = made.entry.store()
    rows = store.index[ChatDataset(store).dialogue_starts]
    ends = np.searchsorted(rows, np.cumsum(made.rows)).tolist()
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return _Counts(made.counts, made.gains, sizes)


def _read_all(
    args: argparse.Namespace,
    sources: Sequence[Source],
    chat_encoder: ChatEncoder,
    screen: _Screen,
    report: HtmlReport | None,
) -> _Counts:
    """Every example is shown, written and counted in this process."""
    records, counts = _records(args, sources, chat_encoder, beginning=False), Counter[str]()
    trained: Counter[str] = Counter()  # dialogues of each file
    gains: Counter[int] = Counter()
    refusal = ""
    with StagedFile(args.output, "--output") if args.output else nullcontext() as output:
        for record, example in _examples(records, chat_encoder, args, at_once=_BATCH):
            if record.dialogue is None:
                counts[f"dropped_{record.dropped}"] += 1
            else:
                count_example(counts, example)
                gains.update(dict(example.gains))
            refusal = refusal or example.refusal
            trained[record.source] += example.is_last and example.outcome.trained > 0
            screen.add(record, example)
            if output:
                output.write(_line(example))
            if report:
                report.add(record, example)
    counts.update(records.counts)
    sizes = [sum(trained[file] for file in source.files) for source in sources]
    lines = [line for line in (*refused_line(counts, refusal), plain_line(counts)) if line]
    return _Counts(counts, list(gains.items()), sizes, lines)


# --- the command line


def read(argv: Sequence[str]) -> argparse.Namespace:
    """The settings on the command line, those of the preview and of training, by name. A first argument that is not a
    flag is a recipe; the command line overrides it. Raises SettingsError."""
    recipe, words = split_recipe(argv)
    reader = preview_reader()
    given = reader.from_yaml(find_recipe(recipe)) if recipe else {}
    given |= reader.from_words(words)
    options = reader.options.values()
    check_refused(options, given)
    check_ranges(options, given)
    values = {option.name: option.default for option in options} | given
    for name in ("model_name_or_path", "data_path"):
        if not values[name]:
            raise SettingsError(f"--{name} is missing")
    if values["data_proportions"] is not None:
        values["data_proportions"] = to_shares(values["data_proportions"])
    return argparse.Namespace(**values)


def _help(asked: str) -> str:
    options = preview_options()
    sections = {
        "Preview": options_of((PreviewArguments,)),
        "Training settings that it reads": _read_options(options),
    }
    return help_text(_HEAD, options, sections, asked)


def _read_options(options: Sequence[Option]) -> list[Option]:
    by_name = {option.name: option for option in options}
    return [by_name[name] for name in _READ]


def _check(args: argparse.Namespace) -> None:
    check_model(args.model_name_or_path)
    if args.data_proportions is not None:
        check_proportions(args.data_proportions, len(args.data_path))


def _check_outputs(args: argparse.Namespace, files: Sequence[str]) -> None:
    if args.output is not None:
        check_output("--output", args.output, files)
    if args.html is not None:
        check_output("--html", args.html, [*files, *([args.output] if args.output else [])])


# --- showing


def _examples(
    records: Records, chat_encoder: ChatEncoder, args: argparse.Namespace, *, at_once: int
) -> Iterator[tuple[Record, Example]]:
    """Every record with each of its examples, in input order; one without a dialogue has an example without ids.

    `at_once`: how many are tokenised together. After a malformed row that will stop the command, the rest of the files
    is only checked.
    """
    num_rows = 0
    with bar("tokenising", records.num_bytes) as progress:
        rows = (record for record in records if not records.stopping)
        while (some := list(islice(rows, _BATCH))) and not records.stopping:
            for at in range(0, len(some), at_once):
                yield from _tokenized(some[at : at + at_once], chat_encoder, args)
            num_rows += len(some)
            progress.to(records.bytes_read, counted(num_rows, "row"))


def _tokenized(
    records: Sequence[Record], chat_encoder: ChatEncoder, args: argparse.Namespace
) -> Iterator[tuple[Record, Example]]:
    how = {"overlong": args.overlong, "on_bad_row": args.on_bad_row}
    made = tokenize_dialogues(usable(records), chat_encoder, max_length=args.model_max_length, **how)
    for record in records:
        if record.dialogue is None:
            yield record, Example(record.index, dropped=record.dropped)
            continue
        for example in made:
            assert example.index == record.index, (example.index, record.index)
            yield record, example
            if example.is_last:
                break


def _print_choice(args: argparse.Namespace, sources: Sequence[Source], sizes: list[int]) -> None:
    """Print how many dialogues a run would use and hold out. `sizes`: those of each source."""
    num = sum(sizes)
    if args.data_proportions and num:
        taken = [len(part) for part in proportional(sizes, args.data_proportions, seed=0)]
        show(proportions_line([source.name for source in sources], taken, sizes))
        num = sum(taken)
    if args.val_set_size and num:
        show(held_out_line(num_held_out(args.val_set_size, num), num))


def _about(args: argparse.Namespace, chat_encoder: ChatEncoder) -> dict[str, str]:
    """The settings shown at the top of the page."""
    return {
        "model": args.model_name_or_path,
        "template": chat_encoder.template.name,
        "data": ", ".join(args.data_path),
        "--train_on": args.train_on,
        "--model_max_length": f"{args.model_max_length:,} (--overlong {args.overlong})",
    }


def _line(example: Example) -> str:
    """The line of one example in the output file."""
    keys = ("index", "input_ids", "labels", "dropped", "truncated_tokens")
    return json.dumps({key: getattr(example, key) for key in keys}) + "\n"


if __name__ == "__main__":
    sys.exit(main())
