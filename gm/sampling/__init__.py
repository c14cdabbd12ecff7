"""From prompts to pictures: networks, samplers and files put together."""
