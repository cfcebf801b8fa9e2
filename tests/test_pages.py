"""What every page of one file relies on: data that its parser cannot see, texts that stay texts, its own policy."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from fastchat.pages import allowed, escaped, filled, safe_json

ANYTHING = st.text(max_size=30) | st.sampled_from(
    ["</script>", "<!--", "]]>", "&lt;", "\u2028", "\u202e", "\udc80", "🙂👩‍👧"]
)


@given(st.lists(ANYTHING))
def test_json_in_the_page_cannot_be_seen_by_its_parser(texts: list[str]) -> None:
    made = safe_json({"x": texts})
    assert made.isascii() and not set(made) & set("<>&") and "\n" not in made
    assert json.loads(made) == {"x": texts}


@given(ANYTHING)
def test_a_text_is_never_markup_and_hides_nothing(text: str) -> None:
    made = escaped(text)
    assert not set(made) & set("<>\"'")
    assert all(c in "\n\t" or c.isprintable() for c in made)
    made.encode()  # also half a surrogate pair


def test_a_place_inside_a_part_is_text() -> None:
    assert filled("<p>{{A}}</p>{{B}}", {"A": "{{B}}", "B": "b"}) == "<p>{{B}}</p>b"


def test_style_and_script_are_allowed_by_their_hashes() -> None:
    parts = allowed("a {}", "let x;")
    # printf 'let x;' | openssl dgst -sha256 -binary | base64
    assert (
        parts["SCRIPT-HASH"] == "sha256-0d16uaq56s5GjNyUV+TVNe6kCw90XFh4MjUbyKmlPjs="
        and parts["STYLE-HASH"] != parts["SCRIPT-HASH"]
    )
