"""Untrusted folders: nothing in them makes us open other files, run code, or unpickle."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.errors import CheckpointError, DataError, SettingsError, UserError, without_secrets
from fastchat.security import check_references, load_yaml
from tests import builders

TinyModel = Callable[..., Path]
CHAT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}


def _edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | values))


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: TinyModel) -> Path:
    """A model folder of this test's own."""
    shutil.copytree(tiny_model_dir("llama", "metaspace_bos"), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return builders.write_rows(tmp_path / "rows.json", [CHAT] * 4)


@pytest.fixture
def uses(tmp_path: Path, rows: Path) -> dict[str, Callable[[Path], Any]]:
    """Everything that opens a model folder, by name; each raises its own error."""

    def training(folder: Path, *more: str) -> None:
        from fastchat.train import train_lora
        from fastchat.train.status import RunStatus

        words = ["--model_name_or_path", str(folder), "--data_path", str(rows), "--output_dir", str(tmp_path / "out")]
        train_lora.run([*words, "--max_steps", "1", "--disable_tqdm", "True", *more], RunStatus())

    def preview(folder: Path, *more: str) -> None:
        from fastchat.data.preview import preview as show
        from fastchat.data.preview import read

        show(read(["--model_name_or_path", str(folder), "--data_path", str(rows), *more]))

    def serve(folder: Path, *more: str) -> None:
        from fastchat.serve.chat import load_chat

        load_chat(str(folder), conv_template=more[-1] if more else "vicuna_v1.1", device="cpu").reply(
            [{"role": "user", "content": "Hi"}], greedy=True, max_new_tokens=2
        )

    def prepare(folder: Path) -> None:
        from fastchat.checkpoint.prepare import prepare_model

        prepare_model(str(folder), str(tmp_path / "prepared"), pad_token="[PAD]")

    return {"training": training, "preview": preview, "serve": serve, "prepare": prepare}


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    from tests.model.adapters import save_random_adapter

    return save_random_adapter(tmp_path / "adapter", model)[0]


# ---- references ----

OUTSIDE = [
    ("tokenizer_config.json", {"tokenizer_file": "/etc/passwd"}),
    ("tokenizer_config.json", {"vocab_file": "../vocab.json"}),
    ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.json", "../../tokenizer.4.0.0.json"]}),
    ("tokenizer_config.json", {"chat_template_file": "~/chat_template.jinja"}),
    ("tokenizer_config.json", {"init": {"deep": [{"spm_file": "https://host/spm.model"}]}}),
    ("config.json", {"transformers_weights": "../other.safetensors"}),
    ("generation_config.json", {"bad_words_file": "C:\\words"}),
    ("adapter_config.json", {"corda_config": {"cache_file": "/tmp/cache.pt"}}),
    ("model.safetensors.index.json", {"weight_map": {"a": "model.safetensors", "b": "../model.safetensors"}}),
]


@pytest.mark.parametrize(("name", "values"), OUTSIDE, ids=[f"{n}-{next(iter(v))}" for n, v in OUTSIDE])
def test_a_file_outside_is_named_and_refused(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(SettingsError, match=f"{name} points outside its folder: .* is "):
        check_references(tmp_path)


def test_what_names_other_models_or_files_inside_is_allowed(tmp_path: Path) -> None:
    inside = {"tokenizer_file": "tokenizer.json", "vocab_file": "sub/vocab.json", "chat_template": "{{ '../x' }}"}
    allowed = inside | {
        "name_or_path": "/mnt/base",
        "special_tokens_map_file": "/elsewhere/x.json",
        "merges_file": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(allowed))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../../base"}))
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "/x", "auto_map": {"AutoModel": "me/x--m.C"}}))
    (tmp_path / "broken.json").write_text("{")
    check_references(tmp_path)


@pytest.mark.parametrize("use", ["training", "preview", "serve", "prepare"])
def test_every_command_refuses_it(uses: dict[str, Any], model: Path, tmp_path: Path, use: str) -> None:
    shutil.copy(model / "tokenizer.json", tmp_path / "secret.json")
    _edit(model / "tokenizer_config.json", tokenizer_file=str(tmp_path / "secret.json"))
    with pytest.raises(SettingsError, match="points outside its folder: tokenizer_file is"):
        uses[use](model)
    assert not (tmp_path / "out").exists() and not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("use", ["chat", "merge", "continue"])
def test_an_adapters_folder_is_looked_at_too(
    uses: dict[str, Any], adapter: Path, model: Path, tmp_path: Path, use: str
) -> None:
    from fastchat.checkpoint.merge import merge_adapter
    from fastchat.serve.chat import load_chat

    _edit(adapter / "adapter_config.json", eva_config={"weights_file": "../../elsewhere.pt"})
    commands = {
        "chat": lambda: load_chat(str(adapter), conv_template="vicuna_v1.1", device="cpu"),
        "merge": lambda: merge_adapter(str(adapter), str(tmp_path / "merged")),
        "continue": lambda: uses["training"](model, "--lora_weight_path", str(adapter)),
    }
    with pytest.raises(SettingsError, match="adapter_config.json points outside its folder: weights_file"):
        commands[use]()


def test_links_as_in_the_hubs_cache_are_followed(uses: dict[str, Any], model: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(model.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("..") / "blobs" / path.name)
    for use in ("preview", "serve"):
        uses[use](model)


# ---- pickles and code ----


class _Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def plant(tmp_path: Path) -> Callable[[Path], None]:
    """`plant(path)`: creates a file that runs code when it is unpickled, in the format of torch.save."""

    def go(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weight": _Evil(tmp_path / "executed")}, path)

    return go


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path: Path) -> Any:
    yield
    assert not (tmp_path / "executed").exists(), "code from a file was run"


def test_the_planted_file_would_run(plant: Any, tmp_path: Path) -> None:
    plant(tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "executed").is_dir()
    (tmp_path / "executed").rmdir()


NAMES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "adapter_model.bin")


@pytest.mark.parametrize("use", ["training", "serve", "prepare"])
def test_pickles_beside_the_weights_are_not_opened(uses: dict[str, Any], model: Path, plant: Any, use: str) -> None:
    for name in (*NAMES, "global_step1/mp_rank_00_model_states.pt"):
        plant(model / name)
    uses[use](model)


@pytest.mark.parametrize("use", ["training", "serve", "prepare"])
def test_weights_that_are_only_pickled_are_refused(uses: dict[str, Any], model: Path, plant: Any, use: str) -> None:
    (model / "model.safetensors").unlink()
    plant(model / "pytorch_model.bin")
    with pytest.raises(SettingsError, match=r"only as pickle \(pytorch_model.bin\), which can run code"):
        uses[use](model)


def test_a_pickled_adapter_is_refused(adapter: Path, plant: Any, tmp_path: Path) -> None:
    from fastchat.checkpoint.merge import merge_adapter

    plant(adapter / "adapter_model.bin")
    merge_adapter(str(adapter), str(tmp_path / "merged"))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(SettingsError, match="pickled adapters are not opened: they can run code"):
        merge_adapter(str(adapter), str(tmp_path / "other"))


def test_deepspeeds_files_are_read_without_running_what_they_hold(plant: Any, tmp_path: Path) -> None:
    from fastchat.train.engine.zero import safe_files

    plant(tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(CheckpointError, match="optim_states.pt cannot be loaded safely"):
        safe_files().load(str(tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"))
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_Evil(tmp_path / "executed"), protocol=2))  # torch's oldest form
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        safe_files().load(str(tmp_path / "raw.pt"))
    good = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, good)
    (tmp_path / "good.pt").write_bytes(good.getvalue())
    assert torch.equal(safe_files().load(str(tmp_path / "good.pt"))["weight"], torch.ones(2))


@pytest.mark.parametrize("use", ["training", "preview", "serve", "prepare"])
@pytest.mark.parametrize("known", [True, False])
def test_code_in_the_folder_is_not_run(
    uses: dict[str, Any], model: Path, tmp_path: Path, use: str, known: bool
) -> None:
    (model / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\nclass Own: pass\n")
    places = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "own.Own")
    _edit(model / "config.json", auto_map=places, **({} if known else {"model_type": "own"}))
    _edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    try:
        uses[use](model)
    except UserError as refused:
        assert "trust_remote_code" in str(refused) or not known, refused


# ---- chat templates ----

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception.__globals__['os'].getcwd() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{{ messages.append(1) }}",
    "{{ 1 / 0 }}",
    "{{ messages[0].content.format_map }}{{ '{0.__class__.__mro__}'.format(messages) }}",
]


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("use", ["training", "preview", "serve"])
def test_a_chat_template_stays_in_its_sandbox(
    uses: dict[str, Any], model: Path, capsys: pytest.CaptureFixture[str], use: str, escape: str
) -> None:
    (model / "chat_template.jinja").write_text(
        escape + "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    flag = [] if use == "serve" else ["--conv_template"]
    with pytest.raises((SettingsError, DataError)) as refused:
        uses[use](model, *flag, "tokenizer")
    captured = capsys.readouterr()
    assert "<class" not in str(refused.value) + captured.out + captured.err


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("-2.5E+3", -2500.0), ("1e5", 1e5), ("3.e-4", 3e-4), ("123e4567", "123e4567"), ("e-5", "e-5")],
)
def test_numbers_of_yaml(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "x.yaml").write_text(f"a: {text}\nb: [{{c: {text}}}]\nd: '{text}'\n")
    assert load_yaml(tmp_path / "x.yaml", "recipe") == {"a": value, "b": [{"c": value}], "d": text}


# ---- secrets ----


def test_secrets_are_left_out_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD", "aws_secret"):
        monkeypatch.setenv(name, f"value-of-{name}")
        assert without_secrets(f"x value-of-{name} y") == "x *** y"
        assert str(SettingsError(f"x value-of-{name} y")) == "x *** y"
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("HOME_TOKENS", "value-of-other")
    assert without_secrets("true value-of-other, 5 tokens") == "true value-of-other, 5 tokens"
    address = "https://me:hf_abc@huggingface.co/x?a=1&token=t0p&api_key=k3y#me@here"
    assert without_secrets(address) == "https://***@huggingface.co/x?a=1&token=***&api_key=***"
    for password in ("p@w0rd", "p'w", "se/cret", 'q"w'):
        assert without_secrets(f"s3://k:{password}@bucket/x is gone") == "s3://***@bucket/x is gone"
    assert without_secrets("https:/bob:pw@host/x: no such file") == "https:/***@host/x: no such file"
    plain = "https://huggingface.co/x?tokens=3 me@host"
    assert without_secrets(plain) == plain
