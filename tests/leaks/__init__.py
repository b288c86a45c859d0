"""Nothing leaks from one request into another: no tokens, no state, no memory."""
