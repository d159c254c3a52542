"""What runs in the environments of other engines: nothing here imports this library, and it imports nothing here."""
