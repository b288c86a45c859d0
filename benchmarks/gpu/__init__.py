"""The GPU benchmark: right on this chip first, then how fast, against its own ceilings and against the baselines."""
