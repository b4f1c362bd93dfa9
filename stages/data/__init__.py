"""Where stages meet: schemas, datasets, pictures, the training plan, cached encodings."""
