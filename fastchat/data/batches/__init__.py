"""Batches: several dialogues packed into a row, the collators, and the check that no dialogue sees another."""
