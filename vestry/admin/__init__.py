"""Operator actions: key rotation, erasure of an owner, the egress audit."""
