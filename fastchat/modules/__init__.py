"""Upstream's settings for quantised models, which programs construct even if they do not use them.

`fastchat.model.load_model` accepts them and refuses those that request anything: use transformers for such models.
"""
