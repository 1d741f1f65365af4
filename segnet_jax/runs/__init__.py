"""A run's life: setup, session, loop, outcome, result, and the checks before it."""
