"""A step as passes over memory, and all that is derived from the containers for it."""
