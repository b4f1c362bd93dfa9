"""Stage `cache_latents`: latents and text embeddings of the plan's examples, computed once."""
