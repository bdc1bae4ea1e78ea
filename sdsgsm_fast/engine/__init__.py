"""A user's model as a list of operations: recorded, folded, and run in the fastest form."""
