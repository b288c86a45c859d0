"""Libraries that call generate(), as they are: each on a stock model, and on a patched one."""
