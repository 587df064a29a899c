"""Sealing of private content: envelopes, the key ring, owners' data keys."""
