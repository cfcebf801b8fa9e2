"""Sizes in bytes: parsing and formatting."""

from __future__ import annotations

import math
import re

from fastchat.errors import SettingsError

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_UNITS = {"": GIB, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}
_UNITS |= {"kib": KIB, "mib": MIB, "gib": GIB, "tib": 1024 * GIB, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_bytes(text: str, label: str) -> int:
    """Parse "24GiB", "80GB" (decimal), "24576MiB" or "24" (GiB) into bytes. Raises SettingsError with `label`.

    >>> parse_bytes("24GiB", "--gpu_memory") == parse_bytes("24", "--gpu_memory") == 24 * 1024**3
    True
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*", str(text))
    unit = _UNITS.get(match.group(2).lower()) if match else None
    if match is None or unit is None or not float(match.group(1)):
        raise SettingsError(f"{label} is {text!r}; give a size above zero such as 24GiB, 80GB or 24576MiB")
    return round(float(match.group(1)) * unit)


def human(num_bytes: float) -> str:
    """Format a size with three digits.

    >>> human(3.6 * 1024**3), human(200 * 1024**2), human(0)
    ('3.60 GiB', '200 MiB', '0')
    """
    size = abs(num_bytes)
    sign = "-" if num_bytes < 0 else ""
    if size >= 100 * GIB:
        return f"{sign}{size / GIB:.0f} GiB"
    if size >= GIB:
        return f"{sign}{size / GIB:.{2 if size < 10 * GIB else 1}f} GiB"
    if size >= MIB:
        return f"{sign}{size / MIB:.0f} MiB"
    return f"{sign}{size / KIB:.0f} KiB" if size >= KIB else f"{sign}{size:.0f}{' B' if size else ''}"


def ceil_div(amount: float, parts: int) -> int:
    """`amount` divided by `parts`, rounded up."""
    return math.ceil(amount / parts)
