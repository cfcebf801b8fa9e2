"""The page: the verdict first, then curves, answers, data, settings; of one run, or of several that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastchat.errors import counted, percent
from fastchat.pages import allowed, asset, escaped, filled, safe_json
from fastchat.report.answers import answers_section
from fastchat.report.charts import Chart, charts_of
from fastchat.report.figures import (
    FIGURES,
    Setting,
    data_of,
    method,
    model_name,
    settings_of,
    sources_of,
    tiles,
    verdict,
)
from fastchat.report.reading import RunFiles, as_list, as_object
from fastchat.report.svg import drawn

_LONGEST = 2000  # characters of a value


def page_of(runs: Sequence[RunFiles]) -> str:
    """The whole page, as text."""
    charts = charts_of(runs)
    body = _one(runs[0], charts) if len(runs) == 1 else _several(runs, charts)
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    package = "fastchat.report"
    parts = allowed(asset(package, "page", "page.css"), asset(package, "page", "page.js"))
    parts |= {"TITLE": escaped(title), "BODY": body, "DATA": safe_json(_data(charts))}
    return filled(asset(package, "page", "page.html"), parts)


def _data(charts: Sequence[Chart]) -> list[dict[str, object]]:
    """The points of every chart in their order, for the script."""
    return [
        {"key": chart.key, "series": [{"name": one.name, "points": one.points} for one in chart.series]}
        for chart in charts
    ]


def _one(run: RunFiles, charts: Sequence[Chart]) -> str:
    head = f"{escaped(model_name(run))}, {escaped(method(run))}"
    items = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(text)}</dd></div>" for name, text in tiles(run))
    return (
        f'<header><p class="kind">Run {escaped(run.name)}</p><h1>{head}</h1>'
        f'<p id="verdict">{escaped(verdict(run))}</p><dl id="tiles">{items}</dl></header><main>'
        f"{_notes([run])}{_charts(charts)}{answers_section([run])}{_data_section(run)}{_example(run)}"
        f"{_settings(run)}{_environment(run)}</main>"
    )


def _several(runs: Sequence[RunFiles], charts: Sequence[Chart]) -> str:
    head = [escaped(run.name) for run in runs]
    figures = [(name, [text(run) for run in runs]) for name, text in FIGURES]
    rows = [[escaped(name), *map(escaped, texts)] for name, texts in figures if any(texts)]
    return (
        f'<header><p class="kind">Comparison of {len(runs)} runs</p><h1>{", ".join(head)}</h1></header><main>'
        f"{_notes(runs)}{_card('Figures', _table(['', *head], rows, 'figures'))}{_charts(charts)}"
        f"{_differing(runs)}{answers_section(runs)}</main>"
    )


def _notes(runs: Sequence[RunFiles]) -> str:
    """How the run failed, what it warned of, and files that are missing or damaged."""
    lines = []
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        message = str(run.status.get("message") or "")
        lines += [f"{name}{message}"] if message else []
        lines += [f"{name}{warning}" for warning in run.warnings if message not in warning or not message]
        lines += [f"{name}this report is not complete: {problem}" for problem in run.problems]
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return f'<ul class="notes" id="notes">{items}</ul>' if items else ""


def _charts(charts: Sequence[Chart]) -> str:
    if not charts:
        return '<p class="notes">No step has been logged yet, so there are no curves.</p>'
    return f'<section class="charts" aria-label="Curves">{"".join(map(drawn, charts))}</section>'


def _data_section(run: RunFiles) -> str:
    tables = []
    for name, title in (("train", "Training data"), ("eval", "Evaluation data")):
        rows = _counts(run, name)
        if rows:
            told = [["sources", escaped(", ".join(sources_of(run, name)) or "unknown")], *rows]
            tables.append(f"<h3>{title}</h3>{_table([], told, f'{name}-data')}")
    packing = [
        [escaped(name), escaped(_packed(as_object(packs)))]
        for name, packs in as_object(run.record.get("packing")).items()
    ]
    tables += [f"<h3>Packing</h3>{_table([], packing, 'packing')}"] if packing else []
    return _card("Data", "".join(tables)) if tables else ""


def _counts(run: RunFiles, name: str) -> list[list[str]]:
    from fastchat.data.tokens.counts import lines

    data = as_object(as_object(run.record.get("data")).get(name))
    counts = {str(key): n for key, n in as_object(data.get("counts")).items() if isinstance(n, int)}
    told = [(line.name, line.text) for line in lines(counts) if line.happened] if counts else []
    if name == "eval":
        told = [(what, text.replace("learned", "evaluated")) for what, text in told]
    rows = [[escaped(what), escaped(text)] for what, text in told]
    if as_object(data.get("chosen")):
        taken = data_of(run, name)
        words = [counted(taken[key], noun) for key, noun in _TAKEN.items() if isinstance(taken.get(key), int)]
        rows.append(["of it used", escaped(", ".join(words))])
    return rows


_TAKEN = {"dialogues": "dialogue", "examples": "example", "tokens": "token", "supervised_tokens": "learned token"}


def _packed(packs: dict[str, object]) -> str:
    fill = packs.get("fill")
    filled_to = f", {percent(fill, 2)} filled" if isinstance(fill, float) else ""
    separate = packs.get("tokens_without_sharing")
    shared = f"; common prefixes computed once: {packs.get('tokens')} tokens instead of {separate}" if separate else ""
    told = f"{packs.get('dialogues')} examples in {packs.get('packs')} packs of {packs.get('capacity')}"
    return f"{told}{filled_to}{shared}"


def _example(run: RunFiles) -> str:
    """One training example, its learned tokens marked."""
    example = as_object(run.begun.get("example"))
    parts = []
    for part in as_list(example.get("parts")):
        if isinstance(part, list) and len(part) == 2:
            tag = "mark" if part[0] else "span"
            parts.append(f"<{tag}>{escaped(part[1])}</{tag}>")
    if not parts:
        return ""
    about = (
        f"Row {example.get('row')}: {example.get('learned')} of {example.get('tokens')} tokens are learned, those that "
        "are marked"
    )
    rest = f"; {example['more']} more tokens are not shown" if example.get("more") else ""
    return _card(
        "A training example",
        f'<p class="about">{escaped(about + rest)}.</p><div class="text" id="example">{"".join(parts)}</div>',
    )


def _settings(run: RunFiles) -> str:
    found = settings_of(run)
    if not found:
        return ""
    own = [_row(one) for one in found if one.differs]
    everything = [_row(one) for one in found]
    head = ["Setting", "Value", "Default", "From"]
    return _card(
        "Settings that differ from the defaults",
        f'<div class="settings">{_table(head, own, "settings")}<details><summary>All {len(found):,} settings</summary>'
        f"{_table(head, everything, 'all-settings')}</details></div>",
    )


def _row(one: Setting) -> list[str]:
    default = "" if one.default is None else _short(one.default)
    return [escaped(one.name), _short(one.value), default, escaped(one.origin)]


def _differing(runs: Sequence[RunFiles]) -> str:
    """The settings in which the runs differ, a column for each run. A setting that an older run does not have is at its
    default; of a run without any settings nothing is known."""
    found = [{one.name: one for one in settings_of(run)} for run in runs]
    rows = []
    for name in dict.fromkeys(name for settings in found for name in settings):
        default = next(settings[name].default for settings in found if name in settings) or "not set"
        values = [settings[name].value if name in settings else default if settings else "" for settings in found]
        if len(set(filter(None, values))) > 1:
            rows.append([escaped(name), *map(_short, values)])
    if not rows:
        return _card("Settings that differ", "<p>None: all settings that are known are the same.</p>")
    return _card("Settings that differ", _table(["Setting", *(escaped(run.name) for run in runs)], rows, "differing"))


def _environment(run: RunFiles) -> str:
    """What was actually used."""
    keys = ("engine", "world_size", "device", "attention", "dtype", "compute_dtype", "optimizer", "head")
    rows = [[escaped(key.replace("_", " ")), escaped(run.record[key])] for key in keys if run.record.get(key)]
    kind = as_object(run.record.get("quantization")).get("type")
    rows += [["quantization", escaped(kind)]] if kind else []
    versions = as_object(run.record.get("versions"))
    rows += [["versions", escaped(", ".join(f"{name} {version}" for name, version in versions.items()))]]
    begun = as_object(run.begun.get("overview"))
    told = [[escaped(name), escaped(text)] for name, text in begun.items()]
    return _card("What was used", _table([], [*told, *rows], "used")) if run.record else ""


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{escaped(title)}</h2>{body}</section>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], name: str) -> str:
    """A table of HTML cells; the first cell of each row is its heading."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    top = f"<thead><tr>{cells}</tr></thead>" if head else ""
    return f'<div class="scroll"><table id="{name}">{top}<tbody>{body}</tbody></table></div>'


def _short(value: str) -> str:
    more = len(value) - _LONGEST
    return escaped(value[:_LONGEST]) + (f" … {more:,} more characters" if more > 0 else "")
