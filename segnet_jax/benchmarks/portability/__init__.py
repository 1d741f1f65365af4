"""Steps lowered for other platforms, and one checkpoint measured on several machines."""
