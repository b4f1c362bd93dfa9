"""Mask-guided inference: the subjects of a request, their masks, and what both branches of a denoising step compute."""
