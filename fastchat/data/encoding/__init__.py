"""Encoding: a rendered dialogue to ids and labels, and the proofs that both are right."""
