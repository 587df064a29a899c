"""Classifiers that need no model server: language identification, Bible references."""
