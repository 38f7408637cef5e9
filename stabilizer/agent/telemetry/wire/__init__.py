"""Over the network: address, connection, transport, typed requests."""
