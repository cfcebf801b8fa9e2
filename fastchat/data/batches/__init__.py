"""Batches: several dialogues in a row, packed or as a prefix tree, the collators, and the check that none sees another."""
