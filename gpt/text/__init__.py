"""Text and tokens: reading text, tokenizers, token files, and batches."""
