"""What is trained: one object says which parameters move."""
