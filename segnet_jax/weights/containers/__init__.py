"""Containers of tensors: HDF5, protobuf, pickles; nothing in them knows a network."""
