"""Tables of the documentation, written from the committed results and from what was tested."""
