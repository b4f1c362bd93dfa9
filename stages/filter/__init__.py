"""Stage `filter`: which samples are worth training on."""
