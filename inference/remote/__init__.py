"""HTTP clients of model servers, and the record of what leaves for a cloud."""
