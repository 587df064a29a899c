"""Every long-running process."""
