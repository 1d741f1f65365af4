"""Compile steps for devices that are not present, and analyze the compiled programs."""
