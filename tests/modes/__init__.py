"""The mode matrix: each way to call generate(), on a stock model and on a patched one, with the status expected.

A package, so that its files may share helpers by relative imports.
"""
