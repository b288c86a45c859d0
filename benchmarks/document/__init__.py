"""Tables of the documentation, written from the committed results."""
