"""Where a model comes from: a local folder or a hub name, and the error messages if it is neither."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastchat.bars import FOR_LIBRARIES, are_drawn
from fastchat.errors import SettingsError, brief
from fastchat.files import JsonError, read_object
from fastchat.paths import meant_here, model_instead, say_hub_is_asked
from fastchat.security import check_references

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")


def is_local(source: str) -> bool:
    """True if `source` is a local folder; False if it can only be a hub name such as `org/name`.

    Raises SettingsError if it can only be a path (see `meant_here`) and no such folder exists, because asking the hub
    for it could take long without a network and give a confusing answer.
    """
    path = Path(source).expanduser()
    if source and path.is_dir():
        return True
    if source and path.exists():
        raise SettingsError(f"{source} is a file, not a model directory: give the folder that holds config.json.")
    if meant_here(source):
        raise SettingsError(f"No such model directory: {source!r}.{model_instead(source)}")
    say_hub_is_asked(source)
    return False


def read_json(path: Path) -> dict:
    """The JSON object in `path`. Raises SettingsError naming the file if it is not one."""
    try:
        return read_object(path, constants=True)
    except (JsonError, OSError) as problem:
        raise SettingsError(f"{path} cannot be read: {problem}. Download or copy the folder again.") from None


def check_model_directory(source: str) -> None:
    """Raise SettingsError unless the local folder `source` has a config and complete safetensors weights."""
    folder = Path(source).expanduser()
    check_references(folder)
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise SettingsError(
            f"{source} is an adapter, not a base model. Give its base ({base!r}) as the model and this folder as "
            "--lora_weight_path to continue it, or merge it first with `fastchat merge`."
        )
    if not (folder / "config.json").is_file():
        raise SettingsError(f"{source} has no config.json, so it is not a model directory.")
    _check_weight_files(folder, source)


def _check_weight_files(folder: Path, source: str) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
            raise SettingsError(
                f"{source} lacks {len(missing)} of {len(shards)} weight files named in {index.name}: "
                f"{', '.join(missing[:3])}. Download the folder again."
            )
    elif not (folder / "model.safetensors").is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_ENDINGS)
        if pickles:
            raise SettingsError(
                f"{source} has its weights only as pickle ({pickles[0]}), which can run code when it is opened. "
                "If you trust it, convert it to safetensors: AutoModelForCausalLM.from_pretrained(...)"
                ".save_pretrained(NEW_FOLDER)."
            )
        raise SettingsError(f"{source} has no model.safetensors: there are no weights in this directory.")


@contextmanager
def loading(source: str, what: str, *, trust_remote_code: bool = False) -> Iterator[None]:
    """Turn what the hub client and `from_pretrained` raise while loading `what` into one SettingsError. The library's
    own bar, which counts weights, follows the rules of ours."""
    from safetensors import SafetensorError
    from transformers.utils import logging as library

    (library.enable_progress_bar if are_drawn() else library.disable_progress_bar)()
    former = library.set_tqdm_hook(lambda make, args, settings: make(*args, **(settings | FOR_LIBRARIES)))
    try:
        yield
    except SettingsError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as problem:
        raise SettingsError(_explain(source, what, problem, trust_remote_code)) from problem
    finally:
        library.set_tqdm_hook(former)


def _explain(source: str, what: str, problem: Exception, trust_remote_code: bool) -> str:
    text = " ".join(str(problem).split())
    start = f"The {what} of {source!r} cannot be loaded"
    if not trust_remote_code and "trust_remote_code" in text:
        return f"{start}: it has Python code of its own. Read that code, then pass --trust_remote_code True."
    chain = [type(e).__name__ for e in _causes(problem)]
    if "GatedRepoError" in chain or "gated repo" in text:
        return f"{start}: it is gated. Accept its licence on the hub, then run `hf auth login` (or set HF_TOKEN)."
    if not Path(source).expanduser().is_dir():
        return (
            f"{start}: there is no such folder here, and the hub does not provide it (offline, private or misspelled). "
            f"Download it on a machine with a network (`hf download {source} --local-dir DIR`) and pass that folder, "
            f"or pass a hub cache that has it with --cache_dir. ({brief(text)})"
        )
    return f"{start}: {brief(text, 400)}"


def _causes(problem: BaseException) -> Iterator[BaseException]:
    step: BaseException | None = problem
    while step is not None:
        yield step
        step = step.__cause__ or step.__context__
