"""Who is measured: our optimizers and their peers."""
