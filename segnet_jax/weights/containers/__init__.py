"""Container formats of tensors (HDF5, protobuf, pickle), independent of any network."""
