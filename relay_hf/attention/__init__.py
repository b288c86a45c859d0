"""Around a forward that runs with a RelayCache: its masks are recognised, its layers attend to shared and own KV."""
