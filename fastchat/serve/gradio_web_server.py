"""Serve an adapter or a model as an OpenAI-compatible API, with a page to chat in the browser.

    python -m fastchat.serve.gradio_web_server ADAPTER_OR_MODEL

The same as `fastchat serve ADAPTER_OR_MODEL --web`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastchat.serve import openai_api_server


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return openai_api_server.main(["--web", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
