"""One application of the API and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from fastchat.serve.api.served import ServedModel
from fastchat.serve.web.guard import Guard
from fastchat.serve.web.page import Page, mounted
from fastchat.serve.web.requests import Api


def with_page(api: Any, models: Mapping[str, ServedModel], address: str, key: str | None, key_variable: str) -> Any:
    """An ASGI application: that of the API, and the page for all other addresses.

    Args:
        address: of the API, for the page's own requests.
        key: of the API, None if it has none; `key_variable`: the variable in which users have it.
    """
    first = next(iter(models.values()))
    about = (*first.about, ("Template", first.chat_encoder.template.name))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    mounted(Page(list(models), about, Api(address, key), key_variable if key else None), app)
    page = Guard(app, key)

    async def both(scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "/")
        is_page = scope["type"] != "http" or not (path == "/health" or path.startswith("/v1"))
        await (page if is_page else api)(scope, receive, send)

    return both
