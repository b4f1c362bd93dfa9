"""A trained adapter in a pipeline of diffusers, with the pipeline's own arguments beside the subjects."""
