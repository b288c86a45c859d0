"""Everything that DESIGN says exactness is easily lost by: held to stock, and shown to need its guard."""
