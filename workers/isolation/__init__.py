"""Isolation of workers: preflight checks and network guard."""
