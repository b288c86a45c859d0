"""How one forward runs with a RelayCache: its masks are recognised, and its layers attend to shared and own KV."""
