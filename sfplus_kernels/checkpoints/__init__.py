"""State dicts, ours and others', checked against the groups before anything changes."""
