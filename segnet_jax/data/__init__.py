"""Datasets on disk, and batches made from them."""
