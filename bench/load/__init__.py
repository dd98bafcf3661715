"""Servers under load, next to LitServe and infinity."""
