"""Readers of pictures and captions: folders and tar shards, and what is read of a file before it is trained."""
