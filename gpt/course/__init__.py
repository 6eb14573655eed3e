"""For students: the lecture's ladder of models, and training a GPT with operations of one's own."""
