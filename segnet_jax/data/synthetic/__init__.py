"""Rendered street scenes; `street_scenes` makes the dataset."""
