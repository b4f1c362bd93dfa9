"""Pictures: decoding, crops, and the way to tensors and back."""
