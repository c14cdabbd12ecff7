"""Pictures and captions to samples: readers, transforms, randomness, the cache."""
