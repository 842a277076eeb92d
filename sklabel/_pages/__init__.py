"""Pages in the browser: what is asked and answered, the server, what is learned."""
