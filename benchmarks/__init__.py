"""What developers measure: GPUs, calls of many shapes, overheads, errors; named workloads on CPUs."""
