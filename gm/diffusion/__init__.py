"""The mathematics of diffusion as pure functions of numpy arrays, in float64 inside; no networks, no device."""
