"""Executing chapters: parameters, provenance, resume, executors."""
