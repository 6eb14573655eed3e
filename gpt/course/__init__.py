"""For students: a ladder of models from bigrams to GPT, and training a GPT with your own operations."""
