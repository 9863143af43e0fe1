"""What a user would write with plain Keras: the other side of each comparison. Nothing here knows of Thaw."""
