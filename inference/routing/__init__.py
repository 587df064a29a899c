"""Routing: policy, router, circuit breakers and rate limits, loaded models."""
