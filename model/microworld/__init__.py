"""The micro world: captioned pictures of procedural 3-D objects, deterministic per id, with exact masks and cameras."""
