"""Version of the world's pictures and captions; weights trained on another version do not fit."""

WORLD_VERSION = 2  # raise on any change of what a spec draws, says or looks like, and renew the golden digest
