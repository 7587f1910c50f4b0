"""Helpers for other libraries; nothing inside dhara imports them."""
