"""Turns a checkpoint into a bundle whose parity is proven."""
