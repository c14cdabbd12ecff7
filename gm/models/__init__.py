"""The networks: Cells in, tensors out. No files, no configuration files, no training."""
