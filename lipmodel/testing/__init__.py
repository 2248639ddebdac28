"""Conformance suites for terms, backends and formulations, and small networks to run them on; for third parties too."""
