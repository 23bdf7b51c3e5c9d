"""People and programs that may come in: users of both realms, sessions, second factors and API keys."""
