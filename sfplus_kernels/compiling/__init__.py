"""A step as torch.compile sees it."""
