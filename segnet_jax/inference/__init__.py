"""Inference with a trained network: loading, prediction, tiles, video and dropout sampling."""
