"""`README.md`: the model card of a result, made from its training record, in the form that the Hugging Face hub reads.

It names the base and the data without their paths. A card that a user has written or edited is never overwritten: the
last line of ours has a digest of the text before it. Like every document it has no digest in `training.json`, so an
edited card does not make a result invalid. Needs only the standard library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastchat.checkpoint.record import TrainingRecord
from fastchat.errors import SettingsError, brief, counted, say, without_secrets
from fastchat.files import sha256_of_text, write_text

CARD = "README.md"
ADAPTER, FULL, MERGED = "adapter", "full", "merged"
_MARK = re.compile(r"\n<!-- made from training\.json, digest ([0-9a-f]{16}); an edited card is kept -->\n\Z")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PATHS = ("model_name_or_path", "data_path", "eval_data_path", "lora_weight_path", "deepspeed", "conv_template_file")
# Shown elsewhere in the card, or of no use to a reader of it.
_NOT_LISTED = ("output_dir", "cache_dir", "resume_from_checkpoint", "run_name", "hub_token", "hub_model_id")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_WIDTH = 160  # characters of a value in a table


def kind_of(folder: Path, record: TrainingRecord) -> str:
    """Whether a result is an adapter, a fully trained model, or an adapter merged into its base."""
    if (folder / "adapter_config.json").is_file():
        return ADAPTER
    return MERGED if "lora_r" in record.settings else FULL


def write_card(
    folder: Path,
    record: TrainingRecord,
    *,
    into: Path | None = None,
    license: str | None = None,
    name: str | None = None,
) -> bool:
    """Write the card of the result in `folder`; returns whether it was written.

    It is written into `into` if that is given (the result is still being saved there). A card in `folder` that a user
    has written or edited stays, and that is said. `license`: an identifier of the hub, such as apache-2.0. `name`: the
    repository on the hub; None for the name of the folder.
    """
    if not is_ours(folder / CARD):
        say(f"{folder / CARD} is not ours, or was edited: it is kept.")
        return False
    target, name = into or folder, name or folder.resolve().name
    text = card(name, record, kind_of(target, record), license=license or license_of(folder / CARD))
    write_text(target / CARD, text)
    return True


def set_license(folder: Path, record: TrainingRecord, license: str) -> None:
    """Write the licence into the card of a result. Raises SettingsError for a word that is no identifier of the hub, or
    a card of the user's with another one."""
    if not _LICENSE.fullmatch(license):
        raise SettingsError(f"--license {license}: expected an identifier of the hub in lower case, such as apache-2.0")
    if is_ours(folder / CARD):
        write_card(folder, record, license=license)
    elif license_of(folder / CARD) != license:
        raise SettingsError(
            f"--license {license}: {folder / CARD} is yours and is not changed; write the line `license: {license}` "
            "into the header between its --- lines"
        )


def try_write_card(folder: Path, record: TrainingRecord, *, into: Path | None = None) -> None:
    """`write_card` after the last step: a card that cannot be made is said, and is no reason to lose the weights."""
    try:
        write_card(folder, record, into=into)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        say(f"WARNING: {CARD} was not written ({type(error).__name__}: {brief(error)})")


def is_ours(path: Path) -> bool:
    """Whether `path` does not exist, or is a card made by this module and not edited since."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    found = _MARK.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def license_of(path: Path) -> str | None:
    """The licence in the metadata of the card at `path`; None if there is none."""
    try:
        head = path.read_text(encoding="utf-8").split("\n---\n")[0]
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"^license: *(\S.*)$", head, re.M)
    return found[1].strip().strip("\"'") if found else None


def card(name: str, record: TrainingRecord, kind: str, *, license: str | None = None) -> str:
    """The whole text of the card, without secrets and without paths of the machine."""
    sections = [
        _metadata(record, kind, license),
        f"# {_plain(name)}",
        _about(record, kind),
        _usage(name, record, kind),
        _training(record),
        _data(record),
        _losses(record),
        _settings(record),
        _versions(record),
    ]
    text = without_secrets("\n\n".join(section for section in sections if section)) + "\n"
    return f"{text}\n<!-- made from training.json, digest {_digest(text)}; an edited card is kept -->\n"


def _digest(text: str) -> str:
    return sha256_of_text(text)[:16]


def public_name(name: str) -> str:
    """A hub name as it is; of a path only its last part.

    >>> public_name("/home/me/models/llama"), public_name("org/model"), public_name("data/chats.json")
    ('llama', 'org/model', 'chats.json')
    """
    return name if is_hub_name(name) else Path(name).name or name


def is_hub_name(name: str) -> bool:
    """Whether `name` is spelled like a model or data set of the hub; local bases are recorded as absolute paths."""
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).suffix.startswith((".json", ".yaml", ".parquet"))


def _metadata(record: TrainingRecord, kind: str, license: str | None) -> str:
    """The YAML header. JSON strings are valid YAML, so every value is written as one."""
    lines = [f"license: {json.dumps(license)}"] if license else []
    lines.append(f"library_name: {'peft' if kind == ADAPTER else 'transformers'}")
    lines.append("pipeline_tag: text-generation")
    if record.base_model and is_hub_name(record.base_model):
        lines.append(f"base_model: {json.dumps(record.base_model)}")
        lines.append(f"base_model_relation: {'adapter' if kind == ADAPTER else 'finetune'}")
    names = [source["name"] for source in _sources(record, "train") if source.get("revision")]
    if names:
        lines += ["datasets:", *(f"- {json.dumps(name)}" for name in dict.fromkeys(names))]
    tags = ["fastchat", "sft", "conversational"]
    tags += ["lora"] if "lora_r" in record.settings else []
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _about(record: TrainingRecord, kind: str) -> str:
    base = f"`{_plain(public_name(record.base_model))}`" if record.base_model else "its base model"
    what = {
        ADAPTER: f"A LoRA adapter for {base}",
        MERGED: f"{base} with a LoRA adapter merged into it",
        FULL: f"{base}, fully fine-tuned",
    }[kind]
    sources = [f"`{_plain(_source_name(source))}`" for source in _sources(record, "train")]
    on = f" on conversations from {', '.join(sources)}" if sources else ""
    version = record.versions.get("fschat")
    return f"{what}, trained with FastChat{f' (fschat {version})' if version else ''}{on}."


def _usage(name: str, record: TrainingRecord, kind: str) -> str:
    quoted = json.dumps(name, ensure_ascii=False)
    if kind == ADAPTER:
        load = [
            "from peft import AutoPeftModelForCausalLM",
            "",
            f"model = AutoPeftModelForCausalLM.from_pretrained({quoted})",
        ]
    else:
        load = [
            "from transformers import AutoModelForCausalLM",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({quoted})",
        ]
    code = [
        "from transformers import AutoTokenizer",
        *load,
        f"tokenizer = AutoTokenizer.from_pretrained({quoted})",
        'messages = [{"role": "user", "content": "Hello"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        "answer = model.generate(**inputs, max_new_tokens=200)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    notes = []
    if record.template:
        named = record.template.get("name")
        which = "its base's own" if named == "tokenizer" else f"`{_plain(str(named))}`"
        notes.append(f"The chat template ({which}) is saved with the tokenizer.")
    if kind == ADAPTER and record.rope_parameters:
        notes.append(
            "The context was extended with RoPE scaling, which peft alone does not apply: use `fastchat chat`, or "
            "merge it first with `fastchat merge`."
        )
    if kind == ADAPTER and record.quantization:
        notes.append("It was trained on the base in 4 bits (nf4); `fastchat chat` and `fastchat merge` load it so.")
    chat = ["## Use", "", "```bash", f"fastchat chat {_plain(name)}", "```"]
    return "\n\n".join(["\n".join(chat), "\n".join(["```python", *code, "```"]), *([" ".join(notes)] if notes else [])])


def _training(record: TrainingRecord) -> str:
    value = lambda name: record.settings.get(name, {}).get("value")  # noqa: E731
    metrics = record.metrics
    rows: dict[str, Any] = {"Method": _method(record, value)}
    rows["Trained parameters"] = f"{record.trainable_parameters:,}" if record.trainable_parameters else None
    rows["Steps"] = metrics.get("steps")
    rows["Epochs"] = value("num_train_epochs") if value("max_steps") in (None, -1) else None
    sizes = [value("per_device_train_batch_size"), value("gradient_accumulation_steps"), record.world_size]
    if None not in sizes:
        rows["Batch"] = f"{sizes[0]} per process × {sizes[1]} accumulated × {counted(sizes[2], 'process')}"
    rows["Learning rate"] = _scheduled(value)
    rows["Maximum length"] = value("model_max_length")
    rows["Packing"] = "yes" if value("packing") else None
    rows["Weights, computing"] = ", ".join(
        str(part) for part in (record.dtype, getattr(record, "compute_dtype", None)) if part
    )
    rows["Engine"] = ", ".join(str(p) for p in (record.engine, record.attention) if p)
    if record.rope_parameters:
        rows["RoPE scaling"] = f"{record.rope_parameters.get('rope_type')}, {record.rope_parameters.get('factor')}"
    return _table("## Training", ("", ""), [(name, shown) for name, shown in rows.items() if shown not in (None, "")])


def _method(record: TrainingRecord, value: Any) -> str:
    if "lora_r" not in record.settings:
        return "full fine-tuning"
    kinds = [name for name, flag in (("DoRA", "use_dora"), ("rsLoRA", "use_rslora")) if value(flag)]
    name = " + ".join(kinds) or "LoRA"
    on = " on the base in 4 bits (QLoRA)" if record.quantization else ""
    return f"{name}, rank {value('lora_r')}, alpha {value('lora_alpha')}, dropout {value('lora_dropout')}{on}"


def _scheduled(value: Any) -> str | None:
    if value("learning_rate") is None:
        return None
    warmup = value("warmup_ratio") or value("warmup_steps")
    return f"{value('learning_rate')}, {value('lr_scheduler_type')}" + (f", warmup {warmup}" if warmup else "")


def _data(record: TrainingRecord) -> str:
    rows = []
    for part in ("train", "eval"):
        found = record.data.get(part)
        if not isinstance(found, Mapping):
            continue
        counts = {**found.get("counts", {}), **found.get("chosen", {})}
        names = ", ".join(_source_name(source) for source in _sources(record, part))
        shown = [counts.get(key) for key in ("dialogues", "supervised_tokens")]
        numbers = [f"{number:,}" if isinstance(number, int) else "" for number in shown]
        rows.append((part, names, *numbers, str(found.get("fingerprint", ""))[:16]))
    heads = ("", "data", "dialogues", "learned tokens", "fingerprint")
    return _table("## Data", heads, rows)


def _losses(record: TrainingRecord) -> str:
    names = {
        "train_loss": "training loss, mean",
        "eval_loss_before": "evaluation loss before training",
        "eval_loss": "evaluation loss",
    }
    found = [(shown, record.metrics[key]) for key, shown in names.items() if record.metrics.get(key) is not None]
    return _table("## Losses", ("per learned token", ""), [(shown, f"{loss:.4f}") for shown, loss in found])


def _settings(record: TrainingRecord) -> str:
    rows = []
    for name, entry in sorted(record.settings.items()):
        value = entry.get("value")
        if entry.get("from") == "default" or value is None or name in _NOT_LISTED:
            continue
        rows.append((f"`{name}`", f"`{_plain(_public_value(name, value))}`", entry.get("from", "")))
    return _table("## Settings that differ from the defaults", ("setting", "value", "from"), rows)


def _public_value(name: str, value: Any) -> str:
    if name in _PATHS:
        items = value if isinstance(value, list) else [value]
        return ", ".join(public_name(item) if isinstance(item, str) else "(a mapping)" for item in items)
    return without_paths(value) if isinstance(value, str) else json.dumps(without_paths(value), ensure_ascii=False)


def without_paths(value: Any) -> Any:
    """A JSON-like value in which every string that is an absolute path, at any depth, is only its last part."""
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~", "file:/")) and "\n" not in value:
        return Path(value).name or value
    return value


def _versions(record: TrainingRecord) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"## Versions\n\n{listed}" if listed else ""


def _sources(record: TrainingRecord, part: str) -> list[dict[str, Any]]:
    found = record.data.get(part)
    sources = found.get("sources", []) if isinstance(found, Mapping) else []
    return [dict(one) for one in sources if isinstance(one, Mapping) and isinstance(one.get("name"), str)]


def _source_name(source: Mapping[str, Any]) -> str:
    return source["name"] if source.get("revision") else Path(source["name"]).name or source["name"]


def _table(title: str, heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    if not rows:
        return ""
    lines = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in (heads, *rows)]
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join([title, "", *lines])


def _cell(value: Any) -> str:
    return brief(value, _WIDTH).replace("|", "\\|")


def _plain(text: str) -> str:
    """`text` on one line, without what ends a code span or begins HTML."""
    return brief(text, _WIDTH).replace("`", "'").replace("<", "‹")
