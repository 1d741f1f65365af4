"""Errors, files, locks, signals, downloads, the console. Imports no other part of segnet_jax."""
