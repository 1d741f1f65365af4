"""Decode label files and class files, and determine what label values mean."""
