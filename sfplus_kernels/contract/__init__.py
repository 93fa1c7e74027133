"""What every room knows: where numbers live, what a backend does, what an algorithm answers."""
