"""Model families and the parts that they are built from."""
