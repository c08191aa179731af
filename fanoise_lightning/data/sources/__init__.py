"""Where rows and images come from: a folder in our own layout, or MMEB's repositories."""
