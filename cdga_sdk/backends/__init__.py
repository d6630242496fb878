"""What runs the network: one protocol, one module per runtime."""
