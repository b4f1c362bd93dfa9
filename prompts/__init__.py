"""Prompt sets: templates, schema, the client of a language model, and the grammar that stands in for one."""
