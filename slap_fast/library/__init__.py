"""Sound library: a folder of indexed recordings that is searched by text or sound. Begin with `library.Library`."""
