"""Where metrics go besides the output folder: only where the user has set that up, never with a login prompt."""

from __future__ import annotations

import importlib.metadata
import netrc
import os
from urllib.parse import urlparse

from fastchat.errors import SettingsError, not_among, say
from fastchat.settings.values import Values

# {where metrics can go: the distributions that have it}; each target is an extra of this project.
TARGETS = {
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "trackio": ("trackio",),
}
_LOOK_AT = {"tensorboard": "tensorboard --logdir {output_dir}", "mlflow": "mlflow ui", "trackio": "trackio show"}


def choose_reports(values: Values) -> None:
    """Resolves `--report_to`: unset means wandb where it is configured, else nothing. Raises SettingsError."""
    asked = values["report_to"]
    names = [asked] if isinstance(asked, str) else list(asked or [])
    names = [part for name in names for part in name.split(",") if part]
    if not values.given("report_to"):
        if _wandb_off() or not (wandb_key_known() or _wandb_offline()) or not _installed("wandb"):
            values.derive("report_to", ["none"])
            return
        values.derive(
            "report_to", ["wandb"], "wandb is configured here: metrics go there too (--report_to none stops it)"
        )
        return
    if names == ["all"]:
        names = [name for name in TARGETS if _installed(name) and (name != "wandb" or wandb_key_known())]
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in TARGETS:
            raise not_among("--report_to", name, (*TARGETS, "all", "none"))
        if not _installed(name):
            raise SettingsError(f"--report_to {name}: not installed here (pip install {TARGETS[name][0]})")
    if "wandb" in names and _wandb_off():
        say("wandb is switched off in the environment (WANDB_MODE or WANDB_DISABLED): no metrics go there")
        names.remove("wandb")
    if "wandb" in names and not (wandb_key_known() or _wandb_offline()):
        say("wandb has no API key here: logging offline into wandb/ (`wandb sync` uploads it later)")
        os.environ["WANDB_MODE"] = "offline"
    if "mlflow" in names and os.environ.get("DISABLE_MLFLOW_INTEGRATION", "").upper() in ("TRUE", "1"):
        say("mlflow is switched off in the environment (DISABLE_MLFLOW_INTEGRATION): no metrics go there")
        names.remove("mlflow")
    for name in names:
        if name in _LOOK_AT:
            say(f"{name}: to look at the metrics, run {_LOOK_AT[name].format(output_dir=values['output_dir'])}")
    origin = values.origin["report_to"]
    values.derive("report_to", names or ["none"])
    values.origin["report_to"] = origin


def wandb_key_known() -> bool:
    """Whether wandb would log in without asking: a key in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb_offline() -> bool:
    return os.environ.get("WANDB_MODE", "") in ("offline", "dryrun")


def _wandb_off() -> bool:
    off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes")
    return off or os.environ.get("WANDB_MODE", "") == "disabled"


def _installed(name: str) -> bool:
    """As a distribution: a `wandb/` folder of an earlier offline run is importable too, but is not the library."""
    for distribution in TARGETS.get(name, (name,)):
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        return True
    return False
