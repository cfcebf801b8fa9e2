"""Tool-integrated mathematics: a model writes code, the sandbox runs it, and the final answers are compared."""
