"""How it is told: plots, a page, the README's section; all from result files alone."""
