"""Isolation of private workers: checks before start and the network guard."""
