"""Isolation of workers: preflight checks, network guard, temporary directory."""
