"""Batches: dialogues packed into rows or grown into prefix trees, the collators, and the check that none sees another."""
