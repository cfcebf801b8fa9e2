"""Room: saving. A result is complete or absent, and what is on disk was compared with what was trained."""
