"""Backends that run models, behind one protocol."""
