"""The painter of the rendered street scenes; `segnet_jax.datasets.synthetic` is its door."""
