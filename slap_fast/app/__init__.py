"""Local web page of a sound library: search, listen, look, locate and caption. Begin with `server.serve`."""
