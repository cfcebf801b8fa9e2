"""What the machine and the user's environment decide: reports, fallbacks, DeepSpeed configurations."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat import streams
from fastchat.errors import ResourceError, SettingsError
from fastchat.settings.options import Option
from fastchat.settings.values import Values
from fastchat.train import hardware, reporting
from fastchat.train.deepspeed_config import load_deepspeed, offloads, stage_of

REPOSITORY = Path(__file__).resolve().parents[2]


# ---- wandb ----


@pytest.fixture
def no_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A user who has never used wandb; everything installed."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(reporting, "_installed", lambda name: True)
    return monkeypatch


def reports(*asked: str) -> tuple[list[str], str]:
    values = Values(
        [Option("report_to", list[str], "none"), Option("output_dir", str, "out")],
        {},
        {"report_to": list(asked)} if asked else {},
    )
    reporting.choose_reports(values)
    return values["report_to"], values.origin["report_to"]


def test_without_a_key_nothing_is_reported(no_wandb: pytest.MonkeyPatch) -> None:
    assert reports() == (["none"], "derived")


def test_a_key_in_the_environment_is_enough(no_wandb: pytest.MonkeyPatch) -> None:
    no_wandb.setenv("WANDB_API_KEY", "k")
    assert reports() == (["wandb"], "derived")
    assert reports("none") == (["none"], "command line")
    no_wandb.setattr(reporting, "_installed", lambda name: False)
    assert reports() == (["none"], "derived")


def test_a_key_in_netrc_is_enough(no_wandb: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n")
    (tmp_path / "netrc").chmod(0o600)
    assert reports()[0] == ["wandb"]
    no_wandb.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert reports()[0] == ["none"], "the key is for another host"


@pytest.mark.parametrize(("mode", "expected"), [("offline", ["wandb"]), ("disabled", ["none"]), ("online", ["none"])])
def test_the_mode_is_honoured(no_wandb: pytest.MonkeyPatch, mode: str, expected: list[str]) -> None:
    no_wandb.setenv("WANDB_MODE", mode)
    assert reports()[0] == expected


def test_asking_without_a_key_goes_offline_instead_of_prompting(
    no_wandb: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_wandb.setenv("WANDB_MODE", "online")
    assert reports("wandb") == (["wandb"], "command line")
    assert os.environ["WANDB_MODE"] == "offline" and "logging offline" in capsys.readouterr().err


def test_switched_off_stays_off(no_wandb: pytest.MonkeyPatch) -> None:
    no_wandb.setenv("WANDB_DISABLED", "true")
    assert reports("wandb,tensorboard")[0] == ["tensorboard"]


def test_all_means_what_works_without_asking(no_wandb: pytest.MonkeyPatch) -> None:
    assert reports("all")[0] == ["tensorboard", "mlflow", "trackio"]


def test_what_is_not_installed_is_named(no_wandb: pytest.MonkeyPatch) -> None:
    no_wandb.setattr(reporting, "_installed", lambda name: False)
    for name in reporting.TARGETS:
        with pytest.raises(SettingsError, match=f"--report_to {name}: not installed here .pip install {name}"):
            reports(name)


def test_every_target_is_an_extra_and_none_is_needed(no_wandb: pytest.MonkeyPatch) -> None:
    """The doctor knows them too; transformers has a callback for each."""
    tomllib = pytest.importorskip("tomllib")
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from fastchat import doctor

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = " ".join(project["dependencies"])
    assert tuple(reporting.TARGETS) == doctor._TRACKERS
    for name in reporting.TARGETS:
        assert name in project["optional-dependencies"] and name not in needed and name in INTEGRATION_TO_CALLBACK
        assert reports(name) == ([name], "command line")


def test_a_mistyped_target_is_suggested(no_wandb: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="did you mean trackio"):
        reports("trackoi")


def test_mlflow_is_left_alone_where_the_environment_says_so(no_wandb: pytest.MonkeyPatch) -> None:
    no_wandb.setenv("DISABLE_MLFLOW_INTEGRATION", "TRUE")
    assert reports("mlflow,trackio")[0] == ["trackio"]


def test_a_wandb_folder_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "offline-runs-only").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not reporting._installed("offline-runs-only")


def test_no_usage_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    level = logging.getLogger("bitsandbytes").level
    streams.quiet_libraries()
    logging.getLogger("bitsandbytes").setLevel(level)
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["WANDB_ERROR_REPORTING"] == "true", "what the user set stays"


# ---- hardware ----


def machine(**given: Any) -> Values:
    defaults = {"use_cpu": False, "tf32": None, "fp16": False, "bf16": False, "dataloader_pin_memory": True}
    defaults |= {"optim": "adamw_torch"}
    return Values([Option(name, str, value) for name, value in defaults.items()], {}, given)


def test_a_gpu_keeps_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_accelerator", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    values = machine(tf32=True, bf16=True, optim="paged_adamw_32bit")
    hardware.fit_to_machine(values)
    assert values["tf32"] is True and values["optim"] == "paged_adamw_32bit" and not values["use_cpu"]


def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hardware, "has_accelerator", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    values = machine(tf32=True)
    hardware.fit_to_machine(values)
    err = capsys.readouterr().err
    assert values["tf32"] is None and "Ampere" in err and "4 GPUs: only the first trains" in err
    with pytest.raises(SettingsError, match="--fp16 True"):
        hardware.fit_to_machine(machine(bf16=True))


# ---- DeepSpeed ----


def test_a_configuration_is_completed(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"zero_optimization": {"stage": 2}, "fp16": {"loss_scale": 0}, "optimizer": {"type": "Adam"}}
    config = load_deepspeed(given)
    assert config["bf16"] == {"enabled": "auto"} and config["fp16"] == {"enabled": "auto", "loss_scale": 0}
    assert config["gradient_clipping"] == "auto" and "optimizer" not in config and "optimizer" in given
    assert "optimizer block (Adam): ignored, --optim decides" in capsys.readouterr().err
    assert stage_of(config) == 2 and not offloads(config)


def test_offload_is_noticed() -> None:
    assert offloads({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}})
    assert not offloads({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}}})


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "playground").glob("deepspeed_config*.json")), ids=lambda p: p.name
)
def test_our_own_configurations_need_no_mending(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_of(load_deepspeed(str(path))) in (2, 3)
    assert capsys.readouterr().err == "", "no block had to be ignored"
    own = json.loads(path.read_text())
    assert {"bf16", "fp16", "gradient_clipping"} <= set(own)


def test_only_offload_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    hardware.check_compiler(None)
    hardware.check_compiler({"zero_optimization": {"stage": 2}})
    with pytest.raises(ResourceError, match="compiler"):
        hardware.check_compiler({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})


@pytest.mark.parametrize("layout", ["cpu_adam", "py311_cpu/cpu_adam"])
def test_the_lock_of_a_killed_build_is_nothing_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    """With torch's own lock: a live build's stays however old it is, a killed one's goes when it is old."""
    from torch.utils.file_baton import FileBaton

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / layout).mkdir(parents=True)
    lock = tmp_path / layout / "lock"
    building = FileBaton(str(lock))
    assert building.try_acquire()
    os.utime(lock, (0, 0))
    config = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    hardware.check_compiler(config)
    assert lock.exists() and capsys.readouterr().err == "", "the build goes on"
    assert building.fd is not None
    os.close(building.fd)  # what its death does
    os.utime(lock)
    hardware.check_compiler(config)
    assert lock.exists() and f"WARNING: {lock} is 0 s old" in capsys.readouterr().err
    os.utime(lock, (0, 0))
    hardware.check_compiler({"zero_optimization": {"stage": 2}})
    assert lock.exists(), "a run that compiles nothing has nothing to do with it"
    hardware.check_compiler(config)
    assert not lock.exists() and "was killed: removed" in capsys.readouterr().err
    assert FileBaton(str(lock)).try_acquire(), "the next build begins at once"
