"""A trained network: loading, prediction, tiles, video, sampling."""
