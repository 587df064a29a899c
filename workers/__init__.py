"""The long-running processes: workers, dispatcher, reconciler, and the stack that runs them."""
