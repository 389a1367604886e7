"""The way to the server: commands, clients, stores, and the servers that axeq starts itself."""
