"""The micro Stable Diffusion: architectures, training problems, shipped weights and their measured quality."""
