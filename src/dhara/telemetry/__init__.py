"""Metrics and logs: what dhara says about itself."""
