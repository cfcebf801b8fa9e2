"""The schema of a tool as a Python function without a body, as Command-R's template shows tools."""

from __future__ import annotations

from typing import Any

_TYPES = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"}


def python_stub(function: Any) -> str:
    """The stub of a function in OpenAI's form: {"name": ..., "description": ..., "parameters": {JSON schema}}.

    >>> print(python_stub({"name": "f", "description": "D.", "parameters": {"properties": {"a": {"type": "string"}}}}))
    ```python
    def f(a: Optional[str] = None) -> List[Dict]:
        \"""D.
    <BLANKLINE>
        Args:
            a (Optional[str]):\x20
        \"""
        pass
    ```
    """
    schema = _mapping(_mapping(function).get("parameters"))
    required = schema.get("required") or ()
    arguments, described = [], []
    for name, field in _mapping(schema.get("properties")).items():
        kind = python_type(field)
        kind = kind if name in required else f"Optional[{kind}]"
        arguments.append(f"{name}: {kind}" + ("" if name in required else " = None"))
        described.append(f"{name} ({kind}): {_mapping(field).get('description', '')}")
    name, description = (_mapping(function).get(key, "") for key in ("name", "description"))
    listed = "\n\n    Args:\n        " + "\n        ".join(described) if described else ""
    signature = f"def {name}({', '.join(arguments)}) -> List[Dict]:"
    return f'```python\n{signature}\n    """{description}{listed}\n    """\n    pass\n```'


def python_type(schema: Any) -> str:
    """The Python type of a JSON schema.

    >>> python_type({"type": "array", "items": {"type": ["string", "null"]}})
    'List[Union[str,Any]]'
    """
    schema = _mapping(schema)
    kind = schema.get("type")
    if isinstance(kind, list):
        return f"Union[{','.join(python_type({'type': one}) for one in kind)}]"
    if kind == "array":
        return f"List[{python_type(schema.get('items'))}]"
    if kind == "object":
        return f"Dict[str, {python_type(schema.get('additionalProperties'))}]"
    return _TYPES.get(kind, "Any") if isinstance(kind, str) else "Any"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
