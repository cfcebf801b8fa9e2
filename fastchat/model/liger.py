"""The kernels of the package liger-kernel for norms, RoPE and SwiGLU. Its losses are not used: the head stays ours."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch

_NOT_OURS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def why_no_liger(device: torch.device) -> str | None:
    """Why its kernels cannot be used here, None where they can."""
    if device.type == "cpu":
        return "its Triton kernels need a GPU"
    for package, name in (("triton", "triton"), ("liger_kernel", "liger-kernel")):
        if importlib.util.find_spec(package) is None:
            return f"it needs the package {name} (pip install {name})"
    return None


class LigerKernels:
    """Puts liger's own forward functions into a model, and takes them out again.

    Liger replaces functions and classes in the module of the model's class, and methods of the model's modules.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._module = sys.modules[type(self.model).__module__]
        self._functions: dict[str, Any] = {}
        self._modules: list[tuple[torch.nn.Module, dict[str, Any]]] = []

    def apply(self) -> None:
        """Raises LookupError for a family that liger does not know."""
        from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
            MODEL_TYPE_TO_APPLY_LIGER_FN,
            _apply_liger_kernel_to_instance,
        )

        kind = self.model.config.model_type
        if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            raise LookupError(f"liger-kernel has no kernels for the family {kind}")
        self._remember()
        _apply_liger_kernel_to_instance(model=self.model, **_NOT_OURS)
        now = vars(self._module)
        changed = [name for name, value in self._functions.items() if now[name] is not value]
        if not changed and all(vars(module).keys() == before.keys() for module, before in self._modules):
            raise LookupError(f"liger-kernel changes nothing in {type(self.model).__name__}")
        # The classes are for models that are made from now on, such as the one that is read back on the CPU.
        now.update({name: self._functions[name] for name in changed if isinstance(self._functions[name], type)})

    def _remember(self) -> None:
        self._functions = dict(vars(self._module))
        self._modules = [(module, dict(vars(module))) for module in self.model.modules()]

    def undo(self) -> None:
        for module, before in self._modules:
            vars(module).clear()
            vars(module).update(before)
        vars(self._module).update(self._functions)
