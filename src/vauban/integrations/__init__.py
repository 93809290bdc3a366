"""Other people's tools: thin, and loaded when they are used."""
