"""The micro Stable Diffusion: architectures, training problems and shipped weights."""
