"""Kinds of jobs: request and result of each, flows, and options."""
