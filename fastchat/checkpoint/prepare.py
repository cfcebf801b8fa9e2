"""Adding a pad token, or other special tokens, to a model: changes tokenizer, embeddings and configs, nothing else.

The weight files are rewritten tensor by tensor without building the model, so tensors that are not resized cannot
change: dtypes may be mixed, shards are kept. The result is then loaded with transformers and compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastchat.bars import each
from fastchat.checkpoint.digests import check_result, record_digests
from fastchat.checkpoint.folders import check_new_folder, new_folder
from fastchat.checkpoint.space import disk_errors
from fastchat.checkpoint.vocabulary import Plan, check_tokens, plan_tokens, write_tokens
from fastchat.errors import CheckpointError, SettingsError, say
from fastchat.model.loading import load_base_model, load_config
from fastchat.model.source import is_local, loading, read_json
from fastchat.model.tokenizer import load_plain
from fastchat.model.tokenizer_files import name_class, write_json, write_tokenizer
from fastchat.security import brings_code

INDEX = "model.safetensors.index.json"
# Weights in other formats, which would still have the old vocabulary.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
_ROWS = 8192  # rows of an embedding that are summed at a time
_NOISE = 0.05  # relative to the spread of rows: survives rounding to bfloat16, far below the distance of tokens


@dataclass(frozen=True)
class Prepared:
    """The result: the tokens' ids, which of them are new, and the rows of the embedding before and after."""

    path: Path
    ids: dict[str, int]
    added: tuple[str, ...]
    rows_before: int
    rows_after: int


def prepare_model(
    model_path: str,
    output_path: str,
    *,
    pad_token: str | None = None,
    special_tokens: Sequence[str] = (),
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> Prepared:
    """Write the model in `model_path` with these tokens into the new folder `output_path`, complete or not at all.

    A token that exists keeps its id. Embedding and head get more rows only if they have too few (many models have
    spare ones); a new row is the mean of the rows that tokens use, plus its own noise.
    Raises SettingsError for a non-empty target, tokens that cannot be added, or a folder that is not a base model;
    CheckpointError if the model has changed since it was saved, or the result does not read back correctly;
    ResourceError if the disk is full or not writable.
    """
    special_tokens = list(dict.fromkeys(special_tokens))
    _check_request(pad_token, special_tokens)
    target = check_new_folder(output_path, "--output-path")
    check_result(model_path)
    load_config(
        model_path, cache_dir=cache_dir, trust_remote_code=trust_remote_code
    )  # raises if it is not a base model
    tokenizer = load_plain(model_path, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    source = _local(model_path, cache_dir)
    resized = _embedding_names(source, trust_remote_code)
    size = sum(path.stat().st_size for path in _weight_files(source))
    with disk_errors(target, size, "model"), new_folder(target) as folder:
        _copy_sidecar_files(source, folder)
        if not (folder / "tokenizer.json").is_file():
            say(f"{model_path} has no tokenizer.json: it is made from the older files.")
            write_tokenizer(tokenizer, folder)
        plan = plan_tokens(folder, list(dict.fromkeys([*([pad_token] if pad_token else []), *special_tokens])))
        if pad_token is not None:
            _check_pad(tokenizer, source, pad_token, plan.ids[pad_token])
        write_tokens(folder, plan, pad_token, special_tokens)
        before = _rows(source, resized)
        after = max(before, plan.size)
        _write_configs(folder, after, plan.ids[pad_token] if pad_token else None, tokenizer.pad_token_id)
        if not brings_code(read_json(folder / "tokenizer_config.json")):
            name_class(tokenizer, folder)
        used = 1 + max(tokenizer.get_vocab().values())
        # Rows that had no token; a pad token's row may be zero.
        taken = [i for token, i in plan.ids.items() if token != pad_token and used <= i < before]
        _write_weights(source, folder, resized, after, min(used, before), taken)
        record_digests(folder)
        check_tokens(tokenizer, folder, plan, pad_token, trust_remote_code=trust_remote_code)
        _check_weights(source, folder, resized, before, taken)
        _check_model(folder, after, list(plan.ids.values()), trust_remote_code)
    _report(target, plan, before, after)
    return Prepared(target, plan.ids, tuple(plan.added), before, after)


# ---- the request ----


def _check_request(pad_token: str | None, special_tokens: Sequence[str]) -> None:
    if pad_token is None and not special_tokens:
        raise SettingsError("nothing to add: give --pad-token '[PAD]' or --special-tokens '<a>' '<b>'.")
    for token in ([] if pad_token is None else [pad_token]) + list(special_tokens):
        if not token or token != token.strip():
            raise SettingsError(f"{token!r} cannot be a token: it is empty, or begins or ends with a space.")


def _check_pad(tokenizer: Any, source: Path, pad_token: str, pad_id: int) -> None:
    """Refuse a pad token that ends answers: a program that masks padding by id would never train the model to stop."""
    ends = {tokenizer.eos_token_id}
    if (source / "generation_config.json").is_file():
        eos = read_json(source / "generation_config.json").get("eos_token_id")
        ends |= set(eos) if isinstance(eos, list) else {eos}
    if pad_id in ends:
        raise SettingsError(
            f"--pad-token {pad_token!r} ends this model's answers (id {pad_id}), so it must not pad: use another "
            "one, such as '[PAD]'."
        )


def _local(model_path: str, cache_dir: str | None) -> Path:
    """The folder with the files, downloaded if `model_path` is a hub name."""
    if is_local(model_path):
        return Path(model_path).expanduser()
    from huggingface_hub import snapshot_download

    with loading(model_path, "model"):
        return Path(snapshot_download(model_path, cache_dir=cache_dir, ignore_patterns=["*.bin", "*.pth", "*.gguf"]))


# ---- files ----


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, in the order of their names."""
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]
    return [folder / "model.safetensors"]


def _copy_sidecar_files(source: Path, folder: Path) -> None:
    """Copies all files except weights; reports files left out because they would still have the old vocabulary."""
    ours = {path.name for path in _weight_files(source)} | {INDEX}
    left_out = []
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        name = path.relative_to(source)
        if name.parts[0].startswith(".") or str(name) in ours:
            continue
        if path.name.endswith(_OTHER_WEIGHTS):
            left_out.append(str(name))
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    if left_out:
        say(f"Left out, because they have the weights in another format: {', '.join(left_out)}.")


def _write_configs(folder: Path, rows: int, pad_id: int | None, known_pad_id: int | None) -> None:
    """Sets rows and pad id in the model's configurations; the tokenizer's own pad id only if they have none."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    for part in [config] + ([text] if isinstance(text, dict) else []):
        if "vocab_size" in part:
            part["vocab_size"] = rows
        if "vocab_size" in part or "pad_token_id" in part:
            _set_pad(part, pad_id, known_pad_id)
    write_json(folder / "config.json", config)
    path = folder / "generation_config.json"
    if path.is_file():
        generation = read_json(path)
        _set_pad(generation, pad_id, known_pad_id)
        write_json(path, generation)


def _set_pad(part: dict[str, Any], pad_id: int | None, known_pad_id: int | None) -> None:
    pad_id = part.get("pad_token_id") if pad_id is None else pad_id
    pad_id = known_pad_id if pad_id is None else pad_id
    if pad_id is not None:
        part["pad_token_id"] = pad_id


# ---- weights ----


def _embedding_names(source: Path, trust_remote_code: bool) -> list[str]:
    """The tensors in the files with one row per token: input embedding, and head (with its bias) if it is not tied.

    Raises SettingsError if they cannot be identified, or the files are not the model's.
    """
    from transformers.core_model_loading import revert_weight_conversion

    # On "meta" only names and shapes are read.
    model = load_base_model(str(source), device="meta", trust_remote_code=trust_remote_code, for_training=False)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    wanted = {name: p for name, p in model.named_parameters(remove_duplicate=False) if _belongs(p, layers)}
    stored = {name for path in _weight_files(source) for name in _names(path)}
    found = sorted(stored & set(revert_weight_conversion(model, wanted)))
    if len(found) < len({id(p) for p in wanted.values()}):
        raise SettingsError(f"{source}: the embeddings are not among the weights ({', '.join(wanted)} looked for).")
    return found


def _belongs(parameter: Any, layers: Sequence[Any]) -> bool:
    return any(parameter is own for layer in layers if layer is not None for own in layer.parameters())


def _names(path: Path) -> list[str]:
    with safe_open(str(path), framework="pt") as file:
        return list(file.keys())


def _rows(source: Path, resized: Sequence[str]) -> int:
    sizes = set()
    for path in _weight_files(source):
        with safe_open(str(path), framework="pt") as file:
            sizes |= {file.get_slice(name).get_shape()[0] for name in resized if name in file.keys()}  # noqa: SIM118
    if len(sizes) != 1:
        raise SettingsError(f"{source}: embedding and head have {' and '.join(map(str, sorted(sizes)))} rows.")
    return sizes.pop()


def _write_weights(
    source: Path, folder: Path, resized: Sequence[str], rows: int, used: int, taken: Sequence[int]
) -> None:
    """Copies every weight file; those with a tensor to resize are rewritten. `used`: rows that tokens use. `taken`:
    spare rows that get a token now; they are reinitialised if they are zero or identical."""
    grown = 0
    for path in each(_weight_files(source), "writing the weights", "file"):
        with safe_open(str(path), framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata()
            ours = {name: file.get_tensor(name) for name in set(names) & set(resized)}
            alike = {name: _alike(old, taken) for name, old in ours.items()}
            if all(rows == len(old) and not alike[name] for name, old in ours.items()):
                shutil.copyfile(path, folder / path.name)
                continue
            tensors = {name: file.get_tensor(name) for name in names}
        for name, old in ours.items():
            if alike[name]:
                say(f"{name}: {len(alike[name])} spare rows were zero or identical: reinitialised near the mean.")
            new = _with_new_rows(old, max(rows, len(old)) + len(alike[name]), used)
            new[alike[name]] = new[len(new) - len(alike[name]) :].clone()
            tensors[name] = new[:rows].contiguous()
            grown += (tensors[name].numel() - old.numel()) * old.element_size()
        save_file(tensors, str(folder / path.name), metadata=metadata)
    if (source / INDEX).is_file():
        index = read_json(source / INDEX)
        if "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] += grown
        index.get("metadata", {}).pop("total_parameters", None)  # optional, and different for tied weights
        write_json(folder / INDEX, index)


def _alike(weight: torch.Tensor, taken: Sequence[int]) -> list[int]:
    """Those of the rows `taken` that are zero or equal to another of them, since training could never tell them apart;
    none for a bias, whose rows are single numbers."""
    rows = [weight[i].flatten() for i in taken] if weight.ndim > 1 else []
    same = [sum(torch.equal(row, other) for other in rows) > 1 for row in rows]
    return [i for i, row, twice in zip(taken, rows, same, strict=False) if twice or not row.any()]


def _with_new_rows(weight: torch.Tensor, rows: int, used: int) -> torch.Tensor:
    """`weight`, [old rows, ...], with rows added near the mean of the first `used` ones, rounded once to its dtype.

    Each is the mean plus its own small noise, with the covariance of the used rows times `_NOISE` squared: equal
    rows would stay equal in training with frozen embeddings. Deterministic.
    """
    generator = torch.Generator().manual_seed(0)
    parts = [part.double() for part in weight[:used].split(_ROWS)]
    mean = sum(part.sum(dim=0) for part in parts) / used
    noise = torch.zeros(rows - len(weight), *weight.shape[1:], dtype=torch.float64)
    for part in parts:  # a sum of the rows with random weights has their covariance
        share = torch.randn(len(noise), len(part), generator=generator, dtype=torch.float64)
        noise += torch.tensordot(share, part - mean, dims=1)
    new = mean + _NOISE / max(1, used - 1) ** 0.5 * noise
    return torch.cat([weight, new.to(weight.dtype)]).contiguous()


# ---- the result ----


def _check_weights(source: Path, folder: Path, resized: Sequence[str], before: int, taken: Sequence[int]) -> None:
    """CheckpointError unless the new files have every old bit, and nothing else but new rows."""
    for old_path in each(_weight_files(source), "reading back", "file"):
        with (
            safe_open(str(old_path), framework="pt") as old_file,
            safe_open(str(folder / old_path.name), framework="pt") as new_file,
        ):
            if sorted(old_file.keys()) != sorted(new_file.keys()):
                raise CheckpointError(f"{old_path.name}: the tensors differ from the original's; nothing was saved")
            for name in old_file.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                old, new = old_file.get_tensor(name), new_file.get_tensor(name)
                kept = new[:before] if name in resized else new
                if name in resized and (alike := _alike(old, taken)):
                    kept = kept.clone()
                    kept[alike] = old[alike]
                if old.dtype != new.dtype or old.shape != kept.shape or not torch.equal(_bits(old), _bits(kept)):
                    raise CheckpointError(f"{name} differs from the original; nothing was saved; check the disk")


def _check_model(folder: Path, rows: int, ids: list[int], trust_remote_code: bool) -> None:
    """CheckpointError unless the folder loads with `rows` rows and computes finite logits for the tokens."""
    model = load_base_model(str(folder), for_training=False, trust_remote_code=trust_remote_code, device="cpu").eval()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[0, *ids]])).logits
    found = (
        embedding.weight.shape[0],
        head.weight.shape[0],
        logits.shape[-1],
        model.config.get_text_config().vocab_size,
    )
    if set(found) != {rows}:
        raise CheckpointError(f"the new model has {found} rows instead of the {rows} written; nothing was saved")
    if not torch.isfinite(logits).all():
        raise CheckpointError("the new model's logits are not finite; nothing was saved")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _report(target: Path, plan: Plan, before: int, after: int) -> None:
    for token in plan.known:
        say(f"{token!r} is already a special token (id {plan.ids[token]}): it is not added.")
    for token in plan.marked:
        say(f"{token!r} is already in the vocabulary (id {plan.ids[token]}): it is marked as special.")
    added = ", ".join(f"{token!r} (id {plan.ids[token]})" for token in plan.added) or "no token"
    if after > before:
        rows = f"embedding rows {before} -> {after}, each new one near the mean with its own noise"
    else:
        rows = f"the embedding's {before} rows are enough"
    say(f"Written to {target}: {added} added, {rows}; read back and compared.")
    if plan.added:
        say("An adapter learns new tokens with --trainable_tokens untrained; full fine-tuning always does.")
