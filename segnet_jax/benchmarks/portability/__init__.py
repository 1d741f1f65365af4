"""Portability: lower steps for other platforms, and measure a checkpoint on several machines."""
