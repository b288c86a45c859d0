"""What users see of rounding: answers of a real chat model, stock and relayed, in three dtypes.

`python -m benchmarks.quality --output benchmarks/results/quality.json` measures; docs/quality.md and docs/numerics.md
show the result.
"""
