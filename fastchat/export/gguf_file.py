"""A GGUF file read with the `gguf` package: its metadata, its tensors compared with a model folder, and rewriting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastchat.bars import bar, each
from fastchat.errors import CheckpointError, SettingsError, counted

EOT = "tokenizer.ggml.eot_token_id"
SPACE_PREFIX, ADDS_BOS = "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.add_bos_token"
# The largest root mean square error of a tensor's values that its type explains, as a share of their own root mean
# square. Rounding of normally distributed values in blocks of 32 (or 256) gives about half of each.
_ERRORS = {
    "F32": 1e-6,
    "F16": 2e-3,
    "BF16": 8e-3,
    "Q8_0": 0.015,
    "Q6_K": 0.05,
    "Q5": 0.1,
    "Q4": 0.2,
    "Q3": 0.4,
    "Q2": 0.7,
}


@dataclass
class Compared:
    """What was compared of the tensors: by tensor type the number and the largest relative error; names without a
    counterpart in the file."""

    types: dict[str, tuple[int, float]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line for the user."""
        told = [f"{number} {kind} (off by up to {error:.1e})" for kind, (number, error) in sorted(self.types.items())]
        left = f"; not compared, because llama.cpp stores them otherwise: {', '.join(self.unknown[:4])}"
        more = f" and {len(self.unknown) - 4} more" if len(self.unknown) > 4 else ""
        return f"tensors: {', '.join(told)}{left + more if self.unknown else ''}"


def library() -> Any:
    """The `gguf` package. Raises SettingsError, with the command that installs it, if it is missing."""
    try:
        import gguf
    except ImportError:
        raise SettingsError("fastchat export gguf needs the package gguf: pip install 'fschat[gguf]'") from None
    return gguf


class GgufFile:
    """A GGUF file, read once: `path`, `metadata` (key -> value), and its tensors.

    Raises CheckpointError if it is not a GGUF file.
    """

    def __init__(self, path: Path):
        try:
            self._reader = library().GGUFReader(path)
        except (ValueError, OSError, IndexError, KeyError) as problem:
            raise CheckpointError(f"{path.name} is not a GGUF file that can be read: {problem}") from None
        self.path = path
        fields = self._reader.fields
        self.metadata: dict[str, Any] = {n: f.contents() for n, f in fields.items() if not n.startswith("GGUF.")}

    def rewrite(self, target: Path, changes: dict[str, tuple[Any, str]]) -> None:
        """Copy the file with other metadata: key -> (value, type), of which the type is a name of GGUFValueType."""
        gguf, reader = library(), self._reader
        writer = gguf.GGUFWriter(target, arch=self.metadata["general.architecture"], endianess=reader.endianess)
        for name, value in self.metadata.items():
            if name == "general.architecture" or name in changes:
                continue
            kinds = reader.fields[name].types
            inner = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, kinds[0], sub_type=inner)
        for name, (value, kind) in changes.items():
            writer.add_key_value(name, value, gguf.GGUFValueType[kind])
        for one in reader.tensors:
            writer.add_tensor_info(one.name, one.data.shape, one.data.dtype, one.data.nbytes, one.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in each(reader.tensors, "writing the metadata", "tensor"):
            writer.write_tensor_data(one.data, tensor_endianess=reader.endianess)
        writer.close()

    def compare(self, folder: Path) -> Compared:
        """Compare every tensor of the model in `folder`: name, shape, and values within the error of their type.

        llama.cpp reorders the rows of some matrices and adds one to some norms; a tensor passes if it is equal up to
        that. Raises CheckpointError for a tensor that is missing or differs.
        """
        dequantize = library().quants.dequantize
        stored = {tensor.name: tensor for tensor in self._reader.tensors}
        compared = Compared()
        names = self._names()
        for name, values in _tensors(folder):
            base, _, suffix = name.rpartition(".")
            mapped = names.get_name(base)
            tensor = stored.get(f"{mapped}.{suffix}")
            if tensor is None:
                if mapped and not base.endswith("lm_head") and ".experts." not in name:
                    raise CheckpointError(f"{self.path.name} lacks the tensor {mapped}.{suffix} ({name})")
                compared.unknown.append(name)
                continue
            kind = tensor.tensor_type.name
            error = _difference(name, values, dequantize(tensor.data, tensor.tensor_type))
            allowed = next(limit for known, limit in _ERRORS.items() if kind.startswith(known) or known == "Q2")
            if not error <= allowed:
                raise CheckpointError(
                    f"{self.path.name}: the values of {tensor.name} ({kind}) differ from {name} by {error:.2e} of "
                    f"their size (allowed: {allowed:.0e})"
                )
            count, worst = compared.types.get(kind, (0, 0.0))
            compared.types[kind] = (count + 1, max(worst, error))
        if not compared.types:
            raise CheckpointError(f"{self.path.name}: none of its {counted(len(stored), 'tensor')} has a known name")
        return compared

    def _names(self) -> Any:
        """The names of tensors in llama.cpp for this architecture."""
        gguf, architecture = library(), self.metadata["general.architecture"]
        number = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
        if number is None:
            raise CheckpointError(
                f"the installed gguf package does not know the architecture {architecture}: update it"
            )
        return gguf.get_tensor_name_map(number, int(self.metadata[f"{architecture}.block_count"]))


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """(name, values as a float32 array) of every tensor in the safetensors files of `folder`."""
    import torch
    from safetensors import safe_open

    paths = sorted(folder.glob("*.safetensors"))
    with bar("comparing with the model", sum(path.stat().st_size for path in paths)) as progress:
        for path in paths:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    tensor = file.get_tensor(name)
                    yield name, tensor.to(torch.float32).numpy()
                    progress.advance(tensor.nbytes)


def _difference(name: str, ours: Any, theirs: Any) -> float:
    """The root mean square difference relative to `ours`, up to what llama.cpp changes on purpose.

    Raises CheckpointError for another shape. A vocabulary may be padded or cut to what the tokenizer has.
    """
    import numpy as np

    theirs = np.asarray(theirs, dtype=np.float32)
    vocabulary = any(part in name for part in ("embed", "lm_head", "wte"))
    if vocabulary and ours.ndim == theirs.ndim == 2 and ours.shape[1] == theirs.shape[1]:
        rows = min(len(ours), len(theirs))
        ours, theirs = ours[:rows], theirs[:rows]
    if ours.squeeze().shape != theirs.squeeze().shape:
        raise CheckpointError(f"{name} has the shape {tuple(ours.shape)}, and {tuple(theirs.shape)} in the GGUF file")
    ours, theirs = ours.squeeze(), theirs.squeeze()
    error = _relative(ours, theirs)
    if error > 1e-3 and ours.ndim == 1:
        error = min(error, _relative(ours + 1, theirs))
    if error > 1e-3 and ours.ndim == 2:  # rows in another order: their products with a fixed vector, sorted
        probe = np.random.default_rng(0).standard_normal(ours.shape[1]).astype(np.float32)
        error = min(error, _relative(np.sort(ours @ probe), np.sort(theirs @ probe)))
    return error


def _relative(ours: Any, theirs: Any) -> float:
    size = float((ours.astype("float64") ** 2).mean() ** 0.5)
    off = float(((ours.astype("float64") - theirs) ** 2).mean() ** 0.5)
    return off / size if size else off
