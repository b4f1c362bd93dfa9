"""HTTP without the painting: bodies, errors, and the routes that are not OpenAI's."""
