"""Errors, files, locks, signals, downloads, the console. Imports no other room of the package."""
