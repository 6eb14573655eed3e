"""Text and tokens: reading texts, turning them into ids and back, token files, and batches of them."""
