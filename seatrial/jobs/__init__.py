"""What users ask for, as Python functions: trial, quantize, evaluate, profile, sweep, report."""
