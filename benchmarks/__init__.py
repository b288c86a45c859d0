"""What developers measure: GPUs, calls of many shapes, overheads, errors; workloads are relay_hf.bench's."""
