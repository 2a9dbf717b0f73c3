"""One binary a question."""
