"""Templates that a test registers are removed after it."""

import pytest

from fastchat.conversation import conv_templates, registry


@pytest.fixture(autouse=True)
def leave_no_template(monkeypatch):
    """Each test registers into copies."""
    monkeypatch.setattr(registry, "_tables", dict(registry._tables))
    before = dict(conv_templates)
    yield
    conv_templates.clear()
    conv_templates.update(before)
