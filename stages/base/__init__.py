"""Stage `base`: the micro Stable Diffusion."""
