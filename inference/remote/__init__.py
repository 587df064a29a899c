"""HTTP clients of model servers, and the egress record of requests to a cloud."""
