"""Rows: what the data paths name, read strictly, one row at a time, to dialogues and back to files."""
