"""The methods, one object each: what an adapter learns from, and how the pipeline denoises with it."""
