"""The benchmark behind `relay-hf bench`: named workloads, all contenders in one run, medians."""
