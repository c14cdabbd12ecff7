"""The mathematics of diffusion, as small pure functions on numpy arrays."""
