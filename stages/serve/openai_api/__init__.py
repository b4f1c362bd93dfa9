"""OpenAI's images API: its fields, answers and events, read and written for our painters."""
