"""Batches: dialogues packed into rows or grown into prefix trees, collators, and the check that none sees another."""
