"""Tokens: the store on disk, the cache that keeps it, the processes that fill it, and the datasets on top of it."""
