"""Makes golden_prompts.json: what upstream's own code renders for every template it registers.

    pip download --no-deps fschat==0.2.36
    python tests/conversation/make_golden.py fschat-0.2.36-py3-none-any.whl conversation.py

Only upstream's conversation.py is loaded: straight from the wheel for all that this one registers, and as it stood in
upstream's repository (commit 0e6d3e4) for the templates that local models got after it. Prompts are kept as SHA-256 of
their text, and one of each template in full, so that a difference can be looked at.
"""

import hashlib
import json
import sys
import types
import zipfile
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden_prompts.json")
SYSTEMS = (None, "", "You are X.")
NUM_TURNS = range(7)
LATER = ("llama-3", "gemma", "cllm", "llava-chatml")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompts_of(make, name: str) -> dict[str, str]:
    """{"system/turns/open": prompt} for one template; `make(name)` returns a new conversation."""
    found = {}
    for system in SYSTEMS:
        for turns in NUM_TURNS:
            for is_open in (False, True):
                conv = make(name)
                if system is not None:
                    conv.set_system_message(system)
                for i in range(turns):
                    conv.append_message(conv.roles[i % 2], f"message number {i}")
                if is_open:
                    conv.append_message(conv.roles[turns % 2], None)
                try:
                    found[f"{system}/{turns}/{'open' if is_open else 'closed'}"] = conv.get_prompt()
                except (ValueError, TypeError):
                    found[f"{system}/{turns}/{'open' if is_open else 'closed'}"] = "<refused>"
    return found


def loaded(source: str, name: str) -> types.ModuleType:
    """Upstream's conversation.py as a module."""
    upstream = types.ModuleType(name)
    sys.modules[name] = upstream
    exec(compile(source, "conversation.py", "exec"), upstream.__dict__)
    return upstream


def main(wheel: str, later: str) -> None:
    released = loaded(zipfile.ZipFile(wheel).read("fastchat/conversation.py").decode(), "upstream_released")
    newest = loaded(Path(later).read_text(encoding="utf-8"), "upstream_newest")
    golden = {}
    for upstream, name in [(released, n) for n in released.conv_templates] + [(newest, n) for n in LATER]:
        prompts = prompts_of(upstream.get_conv_template, name)
        golden[name] = {"example": prompts["None/3/open"], "digests": {k: digest(v) for k, v in prompts.items()}}
    GOLDEN.write_text(json.dumps(golden, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(golden)} templates -> {GOLDEN}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
