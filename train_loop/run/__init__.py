"""A run directory and what training writes into it."""
