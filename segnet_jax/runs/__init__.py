"""Training runs: checks, setup, session, training loop, outcome and result."""
