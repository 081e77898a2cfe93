"""Functions of x written as text: parsed by a grammar of our own, evaluated and differentiated as a tree, never run."""
