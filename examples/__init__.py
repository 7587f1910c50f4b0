"""Runnable examples: `python -m examples.enqueue`, `dhara worker examples.handlers`."""
