"""The operators and their implementations: reference, native and Triton."""
