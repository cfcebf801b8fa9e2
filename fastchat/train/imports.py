"""The imports of a training, which make about a million objects that live as long as the process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """For the code that imports torch and transformers: no garbage is looked for while it runs, nor later in what it
    leaves behind. That search costs a fifth of the time of these imports, and finds nothing.

    Does nothing where torch is there already: what the caller's own program has made stays under collection.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
