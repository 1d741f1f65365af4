"""Readers of weight formats, one module each: they map the format's tensor names to those of a VGG or a SegNet."""
