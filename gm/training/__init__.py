"""The compiled step and everything around it: optimizer, state, loop, logs."""
