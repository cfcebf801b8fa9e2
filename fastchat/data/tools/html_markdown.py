"""Converts the HTML of a chat page to Markdown, with the standard library only.

Made for answers copied from a page: paragraphs, headings, lists (also one that begins at 3, or continues after a
paragraph), code blocks without the page's buttons, tables, links, and formulas as their TeX source. Text is not
escaped: snake_case in an answer stays snake_case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_SKIPPED = {"button", "script", "style", "svg", "noscript", "template", "head", "iframe", "input", "select", "textarea"}
_BLOCKS = {
    "address", "article", "blockquote", "body", "div", "dl", "dt", "dd", "fieldset", "figure", "footer", "form", "h1",
    "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "main", "nav", "ol", "p", "pre", "section", "table", "ul",
}  # fmt: skip
# The open elements that a new element closes implicitly, and the enclosing elements beyond which it closes none.
_CLOSES = {
    "li": ({"li"}, {"ul", "ol"}),
    "tr": ({"tr", "td", "th"}, {"table"}),
    "td": ({"td", "th"}, {"table", "tr"}),
    "th": ({"td", "th"}, {"table", "tr"}),
}
_MARKS = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~", "s": "~~"}
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n\f]+")
_LANGUAGE = re.compile(r"(?:^|\s)lang(?:uage)?-([\w+#.-]+)")
_LINK = re.compile(r"(?:https?://|mailto:|/|#)", re.IGNORECASE)
_MAX_DEPTH = 100  # deeper elements become children of the element at this depth


@dataclass
class _Node:
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[_Node | str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def walk(self) -> Iterator[_Node]:
        """This element and all those in it, in order."""
        yield self
        for child in self.children:
            if isinstance(child, _Node):
                yield from child.walk()

    def text(self) -> str:
        """All its text, unchanged, without buttons and pictures."""
        if self.tag in _SKIPPED:
            return ""
        if self.tag == "br":
            return "\n"
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)


class _Tree(HTMLParser):
    """Builds the elements; an end tag without a start is ignored, and elements still open at the end are closed."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.root = _Node("body")
        self._open = [self.root]
        self.feed(_COMMENT.sub("", text))  # many unclosed comments would take the parser quadratic time
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._close_before(tag)
        node = _Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in _VOID and len(self._open) < _MAX_DEPTH:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._close_before(tag)
        self._open[-1].children.append(_Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == tag:
                del self._open[depth:]
                return

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def _close_before(self, tag: str) -> None:
        closed, barrier = _CLOSES.get(tag, ({"p"}, set()) if tag in _BLOCKS else (set(), set()))
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag in barrier:
                return
            if self._open[depth].tag in closed:
                del self._open[depth:]


def html_to_markdown(html: str) -> str:
    """The Markdown of a piece of HTML.

    >>> html_to_markdown('<div><p>See <b>this</b>:</p><ol start="3"><li>a</li></ol></div>')
    'See **this**:\\n\\n3. a'
    """
    return "\n\n".join(_blocks(_Tree(html).root))


# --- blocks


def _blocks(node: _Node) -> list[str]:
    """The paragraphs, lists, code blocks ... in an element."""
    blocks: list[str] = []
    line: list[_Node | str] = []  # neighbours in one paragraph

    def end_line() -> None:
        text = _inline(line)
        if text:
            blocks.append(text)
        line.clear()

    for child in node.children:
        if isinstance(child, str) or child.tag in _SKIPPED or not any(n.tag in _BLOCKS for n in child.walk()):
            line.append(child)
            continue
        end_line()
        blocks += _block(child)
    end_line()
    return blocks


def _block(node: _Node) -> list[str]:
    tag = node.tag
    if tag == "pre":
        return [_code_block(node)]
    if tag in ("ul", "ol"):
        return _list(node)
    if tag == "table":
        return _table(node)
    if tag == "hr":
        return ["---"]
    if tag == "blockquote":
        quoted = "\n\n".join(_blocks(node))
        return ["\n".join(f"> {line}".rstrip() for line in quoted.split("\n"))] if quoted else []
    if re.fullmatch("h[1-6]", tag):
        text = _inline(node.children).replace("\n", " ")
        return [f"{'#' * int(tag[1])} {text}"] if text else []
    if "whitespace-pre-wrap" in node.classes:
        text = node.text().strip()
        return [text] if text else []
    return _blocks(node)


def _code_block(node: _Node) -> str:
    code = next((inner for inner in node.walk() if inner.tag == "code"), None)
    text = (code or node).text()
    named = [_LANGUAGE.search(inner.attributes.get("class", "")) for inner in node.walk()]
    language = next((found[1] for found in named if found), "")
    if code is None:  # the text of the page's button is in the code itself
        header = re.match(r"\s*([\w+#.-]*?)(?:Copy code)+\n?", text)
        language, text = (header[1], text[header.end() :]) if header else (language, text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def _list(node: _Node) -> list[str]:
    items = []
    number = _whole(node.attributes.get("start"), 1)
    for child in node.children:
        if isinstance(child, str) or child.tag != "li":
            stray = [] if isinstance(child, str) and not child.strip() else _blocks(_Node("li", {}, [child]))
            items += ["\n\n".join(stray)] if stray else []
            continue
        number = _whole(child.attributes.get("value"), number)
        mark = "- " if node.tag == "ul" else f"{number}. "
        items.append(_item(mark, child))
        number += 1
    return ["\n".join(items)] if items else []


def _item(mark: str, node: _Node) -> str:
    """One list item; its further lines are indented to align with the first."""
    text = ""
    for block in _blocks(node):
        tight = re.match(r"(?:- |\d+\. )", block) is not None
        text += ("\n" if tight else "\n\n") * bool(text) + block
    lines = text.split("\n")
    indent = " " * len(mark)
    return "\n".join([(mark + lines[0]).rstrip(), *((indent + line).rstrip() for line in lines[1:])])


def _table(node: _Node) -> list[str]:
    rows: list[list[_Node]] = []
    others: list[_Node | str] = []  # text outside any cell: a caption, a stray word
    _collect(node, rows, others)
    blocks = _blocks(_Node("div", {}, others))
    if not any(rows):
        return blocks
    texts = [[_SPACE.sub(" ", " ".join(_blocks(cell))).replace("|", "\\|") for cell in row] for row in rows if row]
    width = max(map(len, texts))
    lines = [f"| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in texts]
    return [*blocks, "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])]


def _collect(node: _Node, rows: list[list[_Node]], others: list[_Node | str]) -> None:
    """Sort the contents of a table, or of a part of one, into rows of cells and the rest."""
    for child in node.children:
        tag = "" if isinstance(child, str) else child.tag
        if isinstance(child, str):
            others.append(child)
        elif tag in ("td", "th") and rows:
            rows[-1].append(child)
        elif tag in ("thead", "tbody", "tfoot"):
            _collect(child, rows, others)
        elif tag == "tr":
            rows.append([])
            _collect(child, rows, others)
        else:
            others.append(child)


# --- inside a paragraph


def _inline(nodes: list[_Node | str]) -> str:
    """Text and inline elements as one paragraph; white space is collapsed, as a browser does."""
    text = "".join(_SPACE.sub(" ", node) if isinstance(node, str) else _inline_element(node) for node in nodes)
    return re.sub(r" *\n *", "\n", re.sub(r"  +", " ", text)).strip(" \n")


def _inline_element(node: _Node) -> str:
    if node.tag in _SKIPPED:
        return ""
    if node.tag == "br":
        return "\n"
    if node.tag == "code":
        return _code_span(node.text())
    if node.tag == "img":
        return f"![{node.attributes.get('alt', '')}]({node.attributes['src']})" if _LINK.match(_of(node, "src")) else ""
    if "katex" in node.classes or "katex-display" in node.classes:
        formula = _formula(node)
        if formula:
            return formula
    text = _inline_children(node)
    if node.tag == "a" and text.strip() and _LINK.match(_of(node, "href")):
        return f"[{text.strip()}]({node.attributes['href']})"
    mark = _MARKS.get(node.tag, "")
    if not mark or not text.strip():
        return text
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before}{mark}{text.strip()}{mark}{after}"


def _inline_children(node: _Node) -> str:
    return "".join(_SPACE.sub(" ", c) if isinstance(c, str) else _inline_element(c) for c in node.children)


def _code_span(text: str) -> str:
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}" if text else ""


def _formula(node: _Node) -> str:
    """The TeX source of a formula rendered by KaTeX."""
    for inner in node.walk():
        if inner.tag == "annotation" and "tex" in _of(inner, "encoding"):
            tex = inner.text().strip()
            return f"$${tex}$$" if "katex-display" in node.classes else f"${tex}$"
    return ""


def _of(node: _Node, name: str) -> str:
    return node.attributes.get(name, "").strip()


def _whole(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,9}", text) else otherwise
