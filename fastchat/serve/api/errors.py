"""Errors of the API, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from fastchat.errors import brief, without_secrets

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is answered with an error.

    `param`: the parameter that is wrong; `code`: OpenAI's word for what is wrong, where it has one.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, without_secrets(message), param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response; the official client waits as long before it tries again."""
        return {"retry-after": "1"} if self.status in (429, 503) else {}


def wrong(param: str, value: Any, expected: str) -> ApiError:
    """The error for a parameter with a value that is not `expected`."""
    return ApiError(400, f"{param!r} is {brief(repr(value), 80)}; expected {expected}.", param)
