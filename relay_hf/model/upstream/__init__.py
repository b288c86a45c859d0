"""The one room for what is known of Transformers' insides: names, arguments and behaviour beyond its public API.

No other module spells such a name. `facts.py` says what is taken for granted, with the version from which it holds;
`drift.py` checks it when a model is patched.
"""
