"""Where rows and archives come from: folders, copies of the hub, the hub."""
