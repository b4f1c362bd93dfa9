"""Stage `prompts`: context-rich prompts for each concept."""
