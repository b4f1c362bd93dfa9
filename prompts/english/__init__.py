"""English prompts for any class word, without a language model."""
