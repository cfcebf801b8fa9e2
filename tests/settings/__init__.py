"""Tests of the settings: the table, foreign names, recorded settings, help and reference."""
