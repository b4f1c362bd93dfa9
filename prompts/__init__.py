"""Prompt sets: templates, schema, the client of a language model and its answers, and the grammar in its place."""
