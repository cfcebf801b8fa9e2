"""A result as a GGUF file for llama.cpp and Ollama: converted by llama.cpp's own program, read back and compared.

merged model, full model, or adapter (merged first)
 -> a folder as the converter reads it: tokenizer.model with the scores that tokenizer.json implies, added tokens
 -> convert_hf_to_gguf.py -> metadata corrected until whole prompts have the training ids -> llama-quantize
 -> tensors, tokens, chat template, BOS, EOS and stops compared -> the folder with the file and a Modelfile appears
"""

from __future__ import annotations

import itertools
import shlex
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat.checkpoint.folders import check_new_folder, new_folder
from fastchat.checkpoint.space import disk_errors
from fastchat.checkpoint.trained_model import TrainedModel, find_trained
from fastchat.conversation import OWN_TEMPLATE, Dialogue
from fastchat.data.encoding.chat_encoder import ChatEncoder, encode_prompt
from fastchat.data.encoding.probes import probes_of
from fastchat.data.encoding.saved_template import compare_template, jinja_arguments
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.errors import CheckpointError, SettingsError, brief, say
from fastchat.export import gguf_file
from fastchat.export.converter import LlamaCpp, find, run
from fastchat.export.gguf_tokenizer import GgufTokenizer, check_vocabulary, pieces_of, sentencepiece_model
from fastchat.export.modelfile import GoTemplate, NotExpressible, learn, modelfile
from fastchat.export.quants import BEFORE, CONVERTED
from fastchat.files import read_object, write_json, write_text
from fastchat.model.source import check_model_directory
from fastchat.model.tokenizer import load_tokenizer

_LINKED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*.jinja")
_LEAST_CONTEXT = 4096  # tokens of num_ctx, if the model has as many; Ollama's own default is small


@dataclass(frozen=True)
class Exported:
    """A finished export: the file, the Modelfile, and what the user should know."""

    file: Path
    modelfile: Path
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """What is exported: the folder of a full model, its tokenizer, and the template it was trained with."""

    folder: Path
    name: str
    tokenizer: Any
    chat: ChatEncoder | None
    trained_length: int | None


def export_gguf(
    model: str,
    target_path: str | None = None,
    *,
    quant: str = "q8_0",
    llama_cpp: str | None = None,
    download: bool = False,
    base_model_path: str | None = None,
) -> Exported:
    """Write `model` as GGUF into the new folder `target_path` (default: MODEL-gguf), complete or not at all.

    Raises SettingsError for what is missing or cannot be converted, CheckpointError if the file is not the model,
    ResourceError if llama.cpp's program fails or the disk is full.
    """
    gguf_file.library()
    programs = find(llama_cpp, download=download, quantizes=quant not in CONVERTED)
    target = check_new_folder(target_path or f"{model.rstrip('/')}-gguf", "--out")
    if not Path(model).expanduser().is_dir():
        raise SettingsError(f"{model}: there is no such folder; download a model of the hub first (hf download)")
    tuned = find_trained(model, base_model_path)
    with disk_errors(target, 0, "GGUF file"), new_folder(target) as folder:
        with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as name:
            work = Path(name)
            prepared = _prepare(tuned, work, base_model_path)
            file = folder / f"{target.name.removesuffix('-gguf')}-{quant.upper()}.gguf"
            notes, found = _convert(prepared, programs, quant, work, file)
            told, text = _modelfile(prepared, file, found)
        write_text(folder / "Modelfile", text)
    for note in (*notes, *told):
        say(note)
    return Exported(target / file.name, target / "Modelfile", (*notes, *told))


def _prepare(tuned: TrainedModel, work: Path, base_model_path: str | None) -> _Model:
    """The full model, its tokenizer and its template. An adapter is merged into `work` first, and verified."""
    folder = Path(tuned.path).expanduser()
    if tuned.is_adapter:
        from fastchat.checkpoint.merge import merge_adapter

        merge_adapter(tuned.path, str(work / "merged"), base_model_path=base_model_path)
        folder = work / "merged"
    else:
        check_model_directory(tuned.path)
    tokenizer, _ = load_tokenizer(str(folder))
    encoder = TextEncoder.from_tokenizer(tokenizer)
    chat = tuned.bind(encoder)
    if chat is None and tokenizer.chat_template:
        chat = encoder.bind(encoder.choose(OWN_TEMPLATE))
    settings = tuned.record.settings if tuned.record else {}
    length = settings.get("model_max_length", {}).get("value")
    return _Model(folder, Path(tuned.path).resolve().name, tokenizer, chat, length)


# ---- the file


def _convert(model: _Model, programs: LlamaCpp, quant: str, work: Path, file: Path) -> tuple[list[str], dict[str, Any]]:
    """Write `file`, compared with the model; returns what the user should know, and the metadata of the file."""
    config = read_object(model.folder / "config.json", constants=True)
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    kind = quant if quant in CONVERTED else BEFORE.get(dtype, "f16")
    staged = _stage(model, work)
    made = work / f"{file.stem}-{kind}.gguf"
    command = [sys.executable, str(programs.converter), str(staged), "--outfile", str(made), "--outtype", kind]
    run([*command, "--model-name", model.name], f"llama.cpp cannot convert {model.name}", "converting", made)
    if not made.is_file():
        raise CheckpointError(f"{programs.converter.name} ended well, but wrote no {made.name}")
    read = gguf_file.GgufFile(made)
    changes, notes = _corrections(model, read.metadata)
    if changes:
        corrected = work / f"corrected-{made.name}"
        read.rewrite(corrected, changes)
        made.unlink()
        made = corrected
    if quant not in CONVERTED:
        assert programs.quantizer is not None
        quantized = work / file.name
        command = [str(programs.quantizer), str(made), str(quantized), quant.upper()]
        run(command, f"llama-quantize {quant} failed", "quantising", quantized)
        made.unlink()
        made = quantized
    read = read if read.path == made else gguf_file.GgufFile(made)
    compared = read.compare(model.folder)
    notes += _check_metadata(model, read.metadata)
    shutil.move(made, file)
    return [compared.line(), *notes], read.metadata


def _stage(model: _Model, work: Path) -> Path:
    """The model's folder as the converter reads it best.

    It reads the types of added tokens from `tokenizer_config.json`, where transformers 5 no longer writes them; and of
    a ▁-tokenizer without `tokenizer.model` it knows no scores, so that llama.cpp would merge in another order.
    """
    staged = work / "input"
    staged.mkdir()
    for pattern in _LINKED:
        for path in model.folder.glob(pattern):
            (staged / path.name).symlink_to(path.resolve())
    spec = read_object(model.folder / "tokenizer.json")
    (staged / "tokenizer.json").symlink_to((model.folder / "tokenizer.json").resolve())
    config = read_object(model.folder / "tokenizer_config.json", constants=True)
    config.pop("auto_map", None)
    kept = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config["added_tokens_decoder"] = {str(t["id"]): {k: t[k] for k in kept} for t in spec["added_tokens"]}
    write_json(staged / "tokenizer_config.json", config, constants=True)
    pieces = pieces_of(spec)
    if pieces is not None:
        with (staged / "tokenizer.model").open("wb") as file:
            file.write(sentencepiece_model(pieces))
    return staged


class _Served:
    """The prompt as llama.cpp makes it, with the interface that `compare_template` compares a tokenizer through."""

    def __init__(self, model: _Model, tokenizer: GgufTokenizer):
        self._model, self._tokenizer = model, tokenizer

    def apply_chat_template(self, messages: Any, *, add_generation_prompt: bool, **arguments: Any) -> list[int]:
        for name in ("tokenize", "return_dict", "tokenizer_kwargs"):
            arguments.pop(name, None)
        text = self._model.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **arguments
        )
        return self._tokenizer.prompt(text)


def _corrections(model: _Model, found: dict[str, Any]) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """What the metadata must say for llama.cpp to encode prompts as in training and to stop where answers end.

    Raises CheckpointError if no value of the two flags gives the training ids.
    """
    spec = read_object(model.folder / "tokenizer.json")
    notes: list[str] = []
    changes: dict[str, tuple[Any, str]] = {}
    # llama.cpp has its own defaults for a missing key, and Ollama others: it is always written.
    adds_bos = model.tokenizer.encode("a")[:1] == [model.tokenizer.bos_token_id]
    first = GgufTokenizer({gguf_file.ADDS_BOS: adds_bos, **found}, spec)
    if model.chat is None:
        return {}, ["the model has no chat template: whole prompts were not compared"]
    problem = ""
    for space, bos in itertools.product(
        (first.space_prefix, not first.space_prefix), (first.adds_bos, not first.adds_bos)
    ):
        tried = GgufTokenizer({**found, gguf_file.SPACE_PREFIX: space, gguf_file.ADDS_BOS: bos}, spec)
        if bos and tried.bos is None:
            continue
        try:
            compare_template(_Served(model, tried), model.chat, probes_of(model.chat.template))
        except SettingsError as error:
            problem = problem or str(error)
            continue
        written = found.get(gguf_file.ADDS_BOS)
        flags = ((gguf_file.SPACE_PREFIX, space, first.space_prefix), (gguf_file.ADDS_BOS, bos, written))
        changes = {key: (value, "BOOL") for key, value, before in flags if value != before}
        break
    else:
        raise CheckpointError(f"llama.cpp would send other tokens than training: {brief(problem, 400)}")
    stops = [i for i in model.chat.stop_ids if i != found.get("tokenizer.ggml.eos_token_id")]
    if stops and found.get(gguf_file.EOT) != stops[0]:
        changes[gguf_file.EOT] = (stops[0], "UINT32")
    if changes:
        told = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, (value, _) in changes.items())
        notes.append(f"set in the file, so that prompts have the training ids and answers end: {told}")
    if stops[1:]:
        notes.append(f"llama.cpp may not stop at {model.tokenizer.convert_ids_to_tokens(stops[1:])}: pass them as stop")
    return changes, notes


def _check_metadata(model: _Model, found: Mapping[str, Any]) -> list[str]:
    """The finished file once more: vocabulary, chat template, special ids, prompts, stops; returns what is worth
    saying. Raises CheckpointError."""
    tokenizer = GgufTokenizer(found, read_object(model.folder / "tokenizer.json"))
    notes = check_vocabulary(tokenizer, model.folder, model.tokenizer)
    if model.chat is None:
        return notes
    try:
        compare_template(_Served(model, tokenizer), model.chat, probes_of(model.chat.template))
    except SettingsError as problem:
        raise CheckpointError(f"llama.cpp would send other tokens than training: {brief(problem, 400)}") from None
    ends = {tokenizer.eos, found.get(gguf_file.EOT), found.get("tokenizer.ggml.eom_token_id")}
    if model.chat.stop_ids and not ends & set(model.chat.stop_ids):
        raise CheckpointError(
            f"the GGUF file ends answers at {ends - {None}}, and training at {set(model.chat.stop_ids)}"
        )
    return notes


# ---- the Modelfile


def _modelfile(model: _Model, file: Path, found: dict[str, Any]) -> tuple[list[str], str]:
    """(what is said, the text of the Modelfile). `found`: the metadata of the file."""
    context = found.get(f"{found['general.architecture']}.context_length")
    num_ctx = min(context, max(_LEAST_CONTEXT, model.trained_length or 0)) if context else None
    template, why = None, "the model has no chat template"
    if model.chat is not None:
        try:
            template = _go_template(model, GgufTokenizer(found, read_object(model.folder / "tokenizer.json")))
        except NotExpressible as problem:
            why = str(problem)
    if template is None:
        told = [
            f"Modelfile: no TEMPLATE, because a Go template cannot express the chat template: {why}. Ollama versions "
            "that run llama-server use the GGUF file's own chat template; older ones would send the bare text."
        ]
    else:
        told = [f"Modelfile: its TEMPLATE gives the prompts of training{_limits(model)}"]
    notes = [line for note in told for line in textwrap.wrap(note, 110)]
    if num_ctx and num_ctx < context:
        notes.append(f"The model's whole context is {context} tokens; more needs more memory.")
    text = modelfile(file.name, template=template, notes=notes, stops=_stops(model), num_ctx=num_ctx)
    return told, text


def _go_template(model: _Model, tokenizer: GgufTokenizer) -> GoTemplate:
    """The Go template, compared with the prompts of training. Raises NotExpressible."""
    chat = model.chat
    assert chat is not None

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as problem:  # noqa: BLE001 - a template raises what it likes
            raise ValueError(brief(problem, 100)) from problem

    bos = tokenizer.tokens[tokenizer.bos] if tokenizer.adds_bos and tokenizer.bos is not None else ""
    found = learn(render, leading=bos)
    for dialogue in probes_of(chat.template):
        plain = all(turn.role != "tool" and not turn.calls and not turn.reasoning for turn in dialogue.turns)
        if dialogue.tools or not plain or dialogue.template_arguments:
            continue
        if dialogue.system is not None and (not dialogue.system or found.system is None):
            continue  # Ollama cannot send an empty system message
        for number, turn in enumerate(dialogue.turns):
            if turn.role == "assistant":
                _compare_prompt(chat, tokenizer, found, dialogue.before(number))
    return found


def _compare_prompt(chat: ChatEncoder, tokenizer: GgufTokenizer, template: GoTemplate, asked: Dialogue) -> None:
    messages = jinja_arguments(asked, chat.template)["messages"]
    if tokenizer.prompt(template.render(messages)) != list(encode_prompt(asked, chat)):
        raise NotExpressible("its prompts differ from those of training, for example in the white space of messages")


def _limits(model: _Model) -> str:
    """What the Go template does not express."""
    chat = model.chat
    assert chat is not None
    left = [
        name
        for name, shown in (("tools", chat.template.shows_calls), ("reasoning", chat.template.shows_reasoning))
        if shown
    ]
    trims = chat.template.normalise(" a ") != " a "
    told = f"; without {' and '.join(left)}, which it does not express (llama-server --jinja does)" if left else ""
    return told + ("; white space around messages stays, which the chat template may remove" if trims else "")


def _stops(model: _Model) -> list[str]:
    """The texts that end an answer."""
    if model.chat is None:
        return [model.tokenizer.eos_token] if model.tokenizer.eos_token else []
    ids = model.tokenizer.convert_ids_to_tokens(list(model.chat.stop_ids))
    texts = [*ids, *model.chat.template.stop_strings, model.chat.template.stop]
    return list(dict.fromkeys(text for text in texts if text and text.strip() and text.isprintable()))


def next_steps(exported: Exported) -> str:
    """The commands that a user may want now."""
    folder, file = (shlex.quote(str(path)) for path in (exported.file.parent, exported.file))
    lines = [f"cd {folder} && ollama create NAME -f Modelfile", f"llama-server --jinja -m {file}"]
    return "\n".join(f"next       {line}" for line in lines)
