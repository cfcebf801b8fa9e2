"""Makes golden_prompts.json from the fschat wheel: what upstream's own code renders for every template it registers.

    pip download --no-deps fschat==0.2.36 && python tests/conversation/make_golden.py fschat-0.2.36-py3-none-any.whl

Only upstream's conversation.py is loaded, straight from the wheel. Prompts are kept as SHA-256 of their text, and one
of each template in full, so that a difference can be looked at.
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


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompts_of(make, name: str) -> dict[str, str]:
    """{"system/turns/open": prompt} for one template; `make(name)` gives a fresh conversation."""
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


def main(wheel: str) -> None:
    source = zipfile.ZipFile(wheel).read("fastchat/conversation.py").decode()
    upstream = types.ModuleType("upstream_conversation")
    sys.modules[upstream.__name__] = upstream
    exec(compile(source, "conversation.py", "exec"), upstream.__dict__)
    golden = {}
    for name in upstream.conv_templates:
        prompts = prompts_of(upstream.get_conv_template, name)
        golden[name] = {"example": prompts["None/3/open"], "digests": {k: digest(v) for k, v in prompts.items()}}
    GOLDEN.write_text(json.dumps(golden, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(golden)} templates -> {GOLDEN}")


if __name__ == "__main__":
    main(sys.argv[1])
