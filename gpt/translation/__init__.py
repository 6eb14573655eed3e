"""The encoder-decoder Transformer, and translating with it, a character at a time."""
