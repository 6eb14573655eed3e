"""The encoder-decoder Transformer, and character-level translation with it."""
