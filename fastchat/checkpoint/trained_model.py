"""Opening the result of a run: the adapter on the base it was trained on, with that run's RoPE, nf4 and template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat.checkpoint.digests import check_result
from fastchat.checkpoint.fingerprint import model_fingerprint
from fastchat.checkpoint.record import TrainingRecord, read_training_record
from fastchat.conversation import Template
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate
from fastchat.errors import CheckpointError, SettingsError, say
from fastchat.files import sha256_of
from fastchat.model.loading import dequantised_base, load_base_model
from fastchat.model.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_adapter_directory, load_adapter
from fastchat.model.rope import RopeChoice
from fastchat.model.source import is_local
from fastchat.model.tokenizer import TOKENIZER_FILES, load_tokenizer


@dataclass(frozen=True)
class TrainedModel:
    """A folder to use: an adapter with its base, or a full model.

    Attributes:
        path: the folder.
        base: path or hub name of the weights to load; `path` itself for a full model.
        is_adapter: whether `path` is an adapter for `base`.
        record: its `training.json`, None if it has none.
    """

    path: str
    base: str
    is_adapter: bool
    record: TrainingRecord | None

    @property
    def quantised(self) -> bool:
        """Whether the adapter was trained on an nf4 base."""
        return self.is_adapter and self.record is not None and self.record.quantization is not None

    @property
    def rope(self) -> RopeChoice | None:
        """The RoPE scaling to put into the base's config; a full model's own config has it already."""
        record = self.record
        if not self.is_adapter or record is None or record.rope_parameters is None:
            return None
        if record.max_position_embeddings is None:
            raise CheckpointError(f"{self.path}/training.json has rope_parameters without max_position_embeddings.")
        return RopeChoice(record.rope_parameters, record.max_position_embeddings)

    @property
    def template_name(self) -> str | None:
        """The name of the template that the run trained with."""
        template = self.record.template if self.record else None
        return template["name"] if template else None

    def other_base(self) -> str:
        """The message if `base` does not have the weights that the adapter was trained on; "" if it does.

        Known only for adapters with a recorded fingerprint, on a base in a folder.
        """
        recorded = self.record.fingerprints.get("base_model") if self.is_adapter and self.record else None
        found = model_fingerprint(self.base) if recorded else None
        if found is None or len(str(recorded)) != len(found) or found == recorded:  # a hub commit is shorter
            return ""
        return (
            f"{self.base} does not have the weights that the adapter {self.path} was trained on (fingerprint "
            f"{found[:12]} instead of {str(recorded)[:12]})"
        )

    @property
    def _template(self) -> dict[str, Any] | None:
        """The recorded definition of the run's template, with every field of the current format."""
        template = self.record.template if self.record else None
        definition = template["definition"] if template else None
        return (
            definition
            if definition is None or "chat_template" in definition
            else Template.from_dict(definition, self._source).to_dict()
        )

    def say_other_template(self, template: Template | TokenizerTemplate) -> None:
        """The message if `template` is not the run's: another name, or the same name with other strings."""
        if self._template not in (None, template.to_dict()):
            other = self.template_name if self.template_name != template.name else "other strings of the same name"
            say(f"Template: {template.name}, although {self.path} was trained with {other}.")

    def say_other_base_format(self, q_lora: bool) -> None:
        """The message if an adapter is continued on an nf4 base but was not trained on one, or vice versa."""
        if self.record is None or q_lora == self.quantised:
            return
        here, there = ("nf4", "its full weights") if q_lora else ("the full weights", "nf4")
        say(f"Base: {here} (--q_lora {q_lora}), although the adapter {self.path} was trained on {there}.")

    @property
    def _source(self) -> str:
        return f"{self.path}/training.json: "

    def bind(self, encoder: TextEncoder) -> ChatEncoder | None:
        """`encoder` with the recorded template of the run; None if no template is recorded."""
        definition = self._template
        if not definition:
            return None
        if "chat_template" in definition:
            return encoder.bind(TokenizerTemplate(definition["chat_template"], encoder.raw))
        return encoder.bind(Template.from_dict(definition, self._source))


def find_trained(path: str, base_model_path: str | None = None) -> TrainedModel:
    """The model in `path` (a folder or, for a full model, a hub name), and which base it needs.

    The base is `base_model_path`, else the one that the adapter names, else the one in its training record. Raises
    SettingsError if an adapter's base is unknown or does not exist, CheckpointError if files of one of the two do not
    match their recorded digests.
    """
    folder = Path(path).expanduser()
    is_local(path)
    check_result(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        if base_model_path is not None and not folder.is_dir():
            check_adapter_directory(path)
        if base_model_path is not None:
            raise SettingsError(
                f"--base-model-path {base_model_path}: {path} has no {ADAPTER_CONFIG}, so it is not an adapter to put "
                "on that base. Leave the flag out to use the model itself."
            )
        record = read_training_record(path) if folder.is_dir() else None
        return TrainedModel(path, path, is_adapter=False, record=record)
    config = check_adapter_directory(path)
    record = read_training_record(path)
    named = config.get("base_model_name_or_path") or (record.base_model if record else None)
    base = base_model_path or named
    if not base:
        raise SettingsError(f"{path} does not say which base model it was trained on: pass --base-model-path.")
    if base_model_path is None and base.startswith(("/", "~", ".")) and not Path(base).expanduser().is_dir():
        raise SettingsError(
            f"The base model of the adapter {path} was {base}, and that folder does not exist: pass --base-model-path."
        )
    check_result(base)
    return TrainedModel(path, base, is_adapter=True, record=record)


def weights_of(tuned: TrainedModel) -> list[str | None]:
    """What identifies the weights: the fingerprint of the base (None for a hub name) and the digest of the adapter."""
    adapter = sha256_of(Path(tuned.path).expanduser() / ADAPTER_WEIGHTS) if tuned.is_adapter else None
    return [model_fingerprint(tuned.base), adapter]


def load_trained(tuned: TrainedModel, *, weights: str | None = None, **options: Any) -> Any:
    """The model of `tuned`, ready to generate: base with adapter (not merged), or the full model.

    `weights`: the form of the base's weights: "nf4" (as q_lora trains on), "dequantised" (the same values as full
    tensors) or "full" (the original ones); by default as in training. `options` are those of `load_base_model`.
    """
    if not tuned.is_adapter:
        return load_base_model(tuned.base, for_training=False, **options).eval()
    other = tuned.other_base()
    if other:
        say(f"WARNING: {other}: its answers will be wrong")
    weights = weights or ("nf4" if tuned.quantised else "full")
    shared = {"rope": tuned.rope, "for_training": False, **options}
    if weights == "full":
        base = load_base_model(tuned.base, **shared)
    else:
        shared["dtype"] = quantised_from(tuned)
        shared["compute_dtype"] = _compute_dtype(tuned)
        load = dequantised_base if weights == "dequantised" else _load_nf4
        base = load(tuned.base, **shared)
    return load_adapter(base, tuned.path).eval()


def quantised_from(tuned: TrainedModel) -> Any:
    """The dtype that the nf4 codes were made from; that of the base model's files if the record has none."""
    return torch_dtype(tuned.record.dtype) if tuned.record and tuned.record.dtype else "auto"


def torch_dtype(name: str) -> Any:
    """The torch dtype named `name`. Raises CheckpointError for a name that torch does not have."""
    import torch

    dtype = vars(torch).get(name.removeprefix("torch."))
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"training.json names the dtype {name!r}, which torch does not have.")
    return dtype


def load_trained_tokenizer(tuned: TrainedModel, **options: Any) -> Any:
    """The tokenizer saved next to the adapter, else the base's; pad token chosen as in training."""
    own = tuned.is_adapter and any((Path(tuned.path).expanduser() / name).is_file() for name in TOKENIZER_FILES)
    if tuned.is_adapter and not own:
        say(f"{tuned.path} has no tokenizer of its own: using that of {tuned.base}.")
    tokenizer, _ = load_tokenizer(tuned.path if own else tuned.base, **options)
    return tokenizer


def _load_nf4(base: str, **options: Any) -> Any:
    return load_base_model(base, quantization=True, **options)


def _compute_dtype(tuned: TrainedModel) -> Any:
    quantization = (tuned.record.quantization if tuned.record else None) or {}
    name = quantization.get("compute_dtype")
    return torch_dtype(name) if name else None
