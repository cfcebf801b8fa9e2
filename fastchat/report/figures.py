"""What a run came to, in words and numbers: for the head of its page, and for the table that compares runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastchat.errors import counted
from fastchat.plan.units import human
from fastchat.report.charts import Point, finite, points_of
from fastchat.report.reading import RunFiles, as_list, as_object
from fastchat.report.svg import short

_TIME = "%Y-%m-%dT%H:%M:%S%z"


@dataclass(frozen=True)
class Setting:
    """One setting of a run, its values as text. `default` is None where it is not known."""

    name: str
    value: str
    origin: str
    default: str | None

    @property
    def differs(self) -> bool:
        """Whether it is another value than the default."""
        return self.origin != "default" and self.value != self.default


def settings_of(run: RunFiles) -> list[Setting]:
    """All settings of a run, in the order of the reference."""
    from fastchat.settings.readers import training_options

    defaults = {option.name: option.default for option in training_options(lora=True)}
    found = {str(name): as_object(entry) for name, entry in as_object(run.record.get("settings")).items()}
    order = {name: number for number, name in enumerate(defaults)}
    made = []
    for name in sorted(found, key=lambda name: order.get(name, len(order))):
        value, default = found[name].get("value"), defaults.get(name)
        value = default if _equal(value, default) else value
        shown = _text(default) if name in defaults else None
        made.append(Setting(name, _text(value), str(found[name].get("from", "?")), shown))
    return made


def _equal(value: Any, default: Any) -> bool:
    """Whether a recorded value is the default: 1.0 is 1, a list of one name is the name, and names (such as those of
    `lora_target_modules`) may be in another order."""
    if isinstance(value, list) and isinstance(default, list):
        return sorted(map(str, value)) == sorted(map(str, default))
    return value in (default, [default])


def value_of(run: RunFiles, name: str) -> Any:
    """The value of a setting; None if it is not known."""
    return as_object(as_object(run.record.get("settings")).get(name)).get("value")


def model_name(run: RunFiles) -> str:
    """The last part of a base model's path, or its name on the hub."""
    base = str(run.record.get("base_model") or "unknown model")
    return base if base.count("/") == 1 and not base.startswith("/") else base.rstrip("/").rpartition("/")[2]


def method(run: RunFiles) -> str:
    """How it was trained: "LoRA r 8", "QLoRA r 16", "full fine-tuning"."""
    kind = as_object(run.record.get("fingerprints")).get("training")
    rank = value_of(run, "lora_r")
    if kind == "whole model" or rank is None:
        return "full fine-tuning" if run.record else "unknown method"
    name = "DoRA" if value_of(run, "use_dora") is True else "LoRA"
    return f"{'Q' if value_of(run, 'q_lora') is True else ''}{name}, rank {rank}"


def steps_done(run: RunFiles) -> int:
    """The last step that was logged."""
    return max((row["step"] for row in run.rows), default=0)


def steps_planned(run: RunFiles) -> int | None:
    """The steps that the run was to have; None if that is not known."""
    planned = run.begun.get("steps")
    if isinstance(planned, int):
        return planned
    done = as_object(run.record.get("metrics")).get("steps")
    return done if isinstance(done, int) else None


def state_of(run: RunFiles) -> str:
    """How the run ended, or that it has not.

    >>> state_of(run)                                          # doctest: +SKIP
    'ended without a message (killed?) after step 12 of 60'
    """
    done, planned = steps_done(run), steps_planned(run)
    at = f"step {done:,}" + (f" of {planned:,}" if planned else "")
    after = f"after {at}" if done else "before a step was logged"
    status = run.status.get("status")
    if status == "done" or (status is None and run.finished):
        return "finished"
    if run.running:
        return f"running, {at} is logged" if done else "running, no step is logged yet"
    words = {"failed": "failed", "bug": "failed", "preempted": "stopped"}.get(str(status))
    return f"{words or 'ended without a message (killed?)'} {after}"


def seconds_of(run: RunFiles) -> float | None:
    """How long the run took or has taken so far, of its last start."""
    measured = finite(as_object(run.record.get("metrics")).get("train_runtime"))
    if run.finished and measured:
        return measured
    try:
        began = time.mktime(time.strptime(str(run.status.get("started")), _TIME))
        end = time.time() if run.running else time.mktime(time.strptime(str(run.status.get("time")), _TIME))
    except (ValueError, OverflowError):
        return None
    return end - began if end > began else None


def duration(seconds: float) -> str:
    """A duration in words.

    >>> duration(14.81), duration(130), duration(7500)
    ('14.8 s', '2 min 10 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def change(points: list[Point]) -> str:
    """First and last value: "1.362 → 0.01277"; "" without a value."""
    if not points:
        return ""
    first, last = short(points[0][1]), short(points[-1][1])
    return last if len(points) == 1 else f"{first} → {last}"


def speed(run: RunFiles) -> str:
    """Tokens per second over all logged steps, each row weighed by the time that it took."""
    rows = [(finite(row.get("num_tokens")), finite(row.get("tokens_per_second"))) for row in run.rows]
    known = [(tokens, rate) for tokens, rate in rows if tokens and rate]
    taken = sum(tokens / rate for tokens, rate in known)
    return f"{sum(tokens for tokens, _ in known) / taken:,.0f}" if taken else ""


def memory(run: RunFiles) -> str:
    """Measured and planned peak memory."""
    measured = [value for _, value in points_of(run, "memory_measured")]
    planned = [value for _, value in points_of(run, "memory_predicted")]
    if not measured:
        return ""
    return human(max(measured)) + (f" ({human(max(planned))} planned)" if planned else "")


def final(run: RunFiles, key: str) -> str:
    """A number of the finished run in training.json; "" if it has none."""
    value = finite(as_object(run.record.get("metrics")).get(key)) if run.finished else None
    return "" if value is None else short(value)


FIGURES: tuple[tuple[str, Callable[[RunFiles], str]], ...] = (
    ("State", state_of),
    ("Base model", model_name),
    ("Method", method),
    ("Evaluation loss", lambda run: change(points_of(run, "eval_loss"))),
    ("Evaluation loss of the result", partial(final, key="eval_loss")),
    ("Training loss", lambda run: change(points_of(run, "loss"))),
    ("Training loss, mean of the run", partial(final, key="train_loss")),
    ("Steps", lambda run: f"{steps_done(run):,}"),
    ("Time", lambda run: duration(seconds) if (seconds := seconds_of(run)) else ""),
    ("Tokens per second", speed),
    ("Peak memory per process", memory),
    ("Trained parameters", lambda run: _count(run.record.get("trainable_parameters"))),
    ("Training dialogues", lambda run: _count(data_of(run, "train").get("dialogues"))),
    ("Learned tokens per epoch", lambda run: _count(data_of(run, "train").get("supervised_tokens"))),
)
_TILES = ("Evaluation loss", "Training loss", "Steps", "Time", "Tokens per second", "Peak memory per process")


def tiles(run: RunFiles) -> list[tuple[str, str]]:
    """The figures for the head of a page: (name, text) of those that are known."""
    found = [(name, text(run)) for name, text in FIGURES if name in _TILES]
    return [(name, text) for name, text in found if text]


def verdict(run: RunFiles) -> str:
    """The whole run in a few words."""
    state, seconds, dialogues = state_of(run), seconds_of(run), data_of(run, "train").get("dialogues")
    data = f" on {counted(dialogues, 'dialogue')}" if isinstance(dialogues, int) else ""
    took = f" in {duration(seconds)}" if seconds and state == "finished" else ""
    steps = f": {counted(steps_done(run), 'step')}" if state == "finished" else ""
    losses = [
        f"{name} loss {change(points)}"
        for name, key in (("evaluation", "eval_loss"), ("training", "loss"))
        if (points := points_of(run, key))
    ]
    ending = f" {', '.join(losses).capitalize()}." if losses else ""
    return f"{state.capitalize()}{took}{steps}{data}.{ending}"


def data_of(run: RunFiles, name: str) -> dict[str, Any]:
    """The counts of "train" or "eval" data, of what the run takes of it."""
    data = as_object(as_object(run.record.get("data")).get(name))
    chosen = {key: value for key, value in as_object(data.get("chosen")).items() if isinstance(value, int)}
    return {**as_object(data.get("counts")), **chosen}


def sources_of(run: RunFiles, name: str) -> list[str]:
    """The names of the sources of "train" or "eval" data."""
    data = as_object(as_object(run.record.get("data")).get(name))
    return [str(as_object(source).get("name")) for source in as_list(data.get("sources"))]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _text(value: Any) -> str:
    """A setting's value as people write it.

    >>> _text(None), _text([]), _text(5.0), _text(1e-05), _text(["q_proj", "v_proj"])
    ('not set', 'not set', '5', '1e-05', 'q_proj, v_proj')
    """
    if value is None or value == []:
        return "not set"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False, default=str)
