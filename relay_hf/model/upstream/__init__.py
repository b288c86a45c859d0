"""The one package that knows Transformers' insides: names, arguments and behaviour beyond its public API.

No other module spells such a name. `facts.py` lists the facts that relay_hf depends on, with the version from which
each holds. `drift.py` checks them when a model is patched.
"""
