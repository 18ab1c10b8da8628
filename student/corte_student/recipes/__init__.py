"""The recipes that ship: `corte` (the paper's three parts) and `corte-plus` (the best found here)."""
