"""Files to parameters and back: formats, key layouts, detection, conversion, merging."""
