"""Imperfect and streaming supervision."""
