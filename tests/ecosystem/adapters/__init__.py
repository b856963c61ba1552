"""One module for each package, which says how an app uses it, and what its figures have to be."""
