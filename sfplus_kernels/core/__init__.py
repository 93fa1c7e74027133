"""What the optimizers share: groups and state, the step, modes, where gamma comes from."""
