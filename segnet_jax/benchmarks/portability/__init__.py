"""The steps lowered for other platforms, and one checkpoint on several machines."""
